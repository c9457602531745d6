"""Pure questions about a View: one place for each, asked by the API, reconcilers, jobs and the sync service alike."""
