// An OpenID provider for tests: a certified implementation, whose people have groups and need no password.
//
//   node provider.mjs CONFIG.json      in the folder in which oidc-provider is installed
//
// CONFIG: cert, key    files, PEM
//         keys         file of the signing keys; made when missing, so that a provider started again signs as before
//         ready        file written when it listens: {"knobs": where}
//         issuer       https://127.0.0.1:PORT
//         listeners    descriptors of sockets that listen there, as many as there are network namespaces to be reached from
//         algorithm    of ID tokens: RS256 or ES256
//         clients      ids of native clients without a secret
//         settings     {accounts: {alice: {groups: ["/ops"]}}, id_token_lifetime_s, device_interval_s, delay_s, delayed}
//
// The knobs listen without TLS, for the test alone. What they change is in force when they have answered:
//         POST /settings   replaces those settings
//         POST /rotate     signs with a new key from now on; the old one is gone
//         GET /counts      path -> how often it was asked for

import { readFileSync, existsSync, renameSync, writeFileSync } from 'node:fs';
import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { createRequire } from 'node:module';
import { createServer as createPlain } from 'node:http';
import { createServer } from 'node:https';
import { text } from 'node:stream/consumers';
import { setTimeout as delay } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';

const modules = createRequire(`${process.cwd()}/`);
const installed = (name) => import(pathToFileURL(modules.resolve(name)));
const { Provider } = await installed('oidc-provider');
const { createMemoryAdapter } = await installed('oidc-provider/lib/adapters/memory_adapter.js');

const config = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const { settings } = config;
const adapter = createMemoryAdapter(); // one for all providers made below: sessions and codes outlive a rotation
const cookies = [randomUUID()];
const counts = {};
let provider;
let answer;

const orSay = (handler) => (request, response) => handler(request, response).catch((error) => {
  console.error(error);
  response.writeHead(500).end(String(error));
});

function replace(path, content) {
  writeFileSync(`${path}.new`, JSON.stringify(content), { mode: 0o600 });
  renameSync(`${path}.new`, path);
}

function newKeys() {
  const [kind, options] = config.algorithm === 'ES256' ? ['ec', { namedCurve: 'P-256' }] : ['rsa', { modulusLength: 2048 }];
  const jwk = generateKeyPairSync(kind, options).privateKey.export({ format: 'jwk' });
  const keys = [{ ...jwk, kid: randomUUID(), alg: config.algorithm, use: 'sig' }];
  replace(config.keys, keys);
  return keys;
}

const subject = (name) => settings.accounts[name].sub ?? name;

function findAccount(_, id) {
  const name = Object.keys(settings.accounts).find((each) => subject(each) === id);
  return name && { accountId: id, claims: () => ({ preferred_username: name, ...settings.accounts[name], sub: id }) };
}

function client(id) {
  return {
    client_id: id,
    application_type: 'native',
    token_endpoint_auth_method: 'none',
    redirect_uris: ['http://127.0.0.1/callback'], // of a native client: with any port (RFC 8252, 7.3)
    response_types: ['code'],
    grant_types: ['authorization_code', 'urn:ietf:params:oauth:grant-type:device_code'],
    id_token_signed_response_alg: config.algorithm,
  };
}

function serveWith(keys) {
  provider = new Provider(config.issuer, {
    adapter,
    findAccount,
    clients: config.clients.map(client),
    jwks: { keys },
    cookies: { keys: cookies },
    claims: { openid: ['sub'], profile: ['preferred_username', 'name'], email: ['email'], groups: ['groups'] },
    conformIdTokenClaims: false, // claims of scopes stand in the ID token, not only in the user info
    features: { devInteractions: { enabled: false }, deviceFlow: { enabled: true } },
    interactions: { url: (_, interaction) => `/interaction/${interaction.uid}` },
    pkce: { required: () => true }, // S256 is the only method
    ttl: { IdToken: () => settings.id_token_lifetime_s },
  });
  provider.use(async (ctx, next) => {
    await next();
    if (ctx.oidc?.route === 'device_authorization' && ctx.status === 200) ctx.body.interval = settings.device_interval_s;
  });
  answer = provider.callback();
}

const page = (form) => `<!DOCTYPE html><html><body><form method="post">${form}
  <button type="submit">Continue</button><button type="submit" name="abort" value="yes">Refuse</button></form></body></html>`;
const PAGES = { login: page('<input type="text" name="login">'), consent: page('Let it know who you are and your groups?') };

async function consent({ grantId, session, params, prompt: { details } }) {
  const known = grantId && (await provider.Grant.find(grantId));
  const grant = known || new provider.Grant({ accountId: session.accountId, clientId: params.client_id });
  grant.addOIDCScope((details.missingOIDCScope ?? []).join(' '));
  grant.addOIDCClaims(details.missingOIDCClaims ?? []);
  return { consent: { grantId: await grant.save() } };
}

async function interact(request, response) {
  const details = await provider.interactionDetails(request, response);
  const form = request.method === 'POST' ? new URLSearchParams(await text(request)) : undefined;
  const login = form?.get('login');
  const asksAgain = details.prompt.name === 'login' && !form?.has('abort') && !settings.accounts[login];
  if (!form || asksAgain) {
    response.writeHead(form ? 400 : 200, { 'content-type': 'text/html' }).end(PAGES[details.prompt.name]);
    return;
  }
  let result;
  if (form.has('abort')) result = { error: 'access_denied', error_description: 'refused by the person' };
  else result = details.prompt.name === 'login' ? { login: { accountId: subject(login) } } : await consent(details);
  await provider.interactionFinished(request, response, result, { mergeWithLastSubmission: !form.has('abort') });
}

async function serve(request, response) {
  const { pathname } = new URL(request.url, config.issuer);
  counts[pathname] = (counts[pathname] ?? 0) + 1;
  if (settings.delay_s && pathname.startsWith(settings.delayed)) await delay(settings.delay_s * 1000);
  await (pathname.startsWith('/interaction/') ? interact : answer)(request, response);
}

async function turn(request, response) {
  if (request.url === '/settings') Object.assign(settings, JSON.parse(await text(request)));
  if (request.url === '/rotate') serveWith(newKeys());
  response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(counts));
}

async function listening(handler, where, options) {
  const server = options ? createServer(options, orSay(handler)) : createPlain(orSay(handler));
  await once(server.listen(where), 'listening');
  return server.address();
}

serveWith(existsSync(config.keys) ? JSON.parse(readFileSync(config.keys, 'utf8')) : newKeys());
const tls = { cert: readFileSync(config.cert), key: readFileSync(config.key) };
for (const fd of config.listeners) await listening(serve, { fd }, tls);
const { port } = await listening(turn, { host: '127.0.0.1', port: 0 });
replace(config.ready, { knobs: `http://127.0.0.1:${port}` });
