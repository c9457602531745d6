"""As whom a user logs in: which subject of which identity provider. One user each, kept by a claim of its own.

Never by name alone: what a provider calls people changes hands (somebody leaves, another one of that name comes), its `sub`
does not.
"""

from __future__ import annotations

from cairn.controller.api import nouns, resolution, validation
from cairn.controller.api.objects import looked_up
from cairn.controller.model.authority import authority, lacking
from cairn.controller.model.names import CLUSTER_WIDE, LOGIN, login_name
from cairn.controller.model.permits import Caller, authority_of
from cairn.controller.openid import SUBJECT_CHARACTERS_MAX
from cairn.controller.store.base import Txn, View
from cairn.proto import kinds
from cairn.proto.errors import BadState, Denied, Invalid, TryAgain
from cairn.proto.v1.cluster_pb2 import NameClaim
from cairn.proto.v1.user_pb2 import User, UserLogin, UserSpec


def claim_id(login: UserLogin) -> str:
    """Return the id of the claim that keeps a subject one user's."""
    return f"{CLUSTER_WIDE}/{LOGIN}/{login_name(login)}"


def link(txn: Txn, view: View, user: User) -> None:
    """Claim whom a user logs in as; its provider must stay as it is. Raises BadState."""
    login, key = user.spec.login, claim_id(user.spec.login)
    held = view.get(kinds.NAME, key)
    if held is not None and held.id != user.id:
        taken = view.get(kinds.USER, held.id)
        other = taken.name if taken is not None else held.id
        raise BadState("user", other, f"user {other!r} logs in as that subject already: unlink it first (cairn user unlink)")
    claim = NameClaim(kind=LOGIN, project=CLUSTER_WIDE, name=key.rpartition("/")[2], id=user.id)
    txn.check(kinds.NAME, key, view.revision_of(kinds.NAME, key)).put(kinds.NAME, key, claim)
    txn.check(kinds.IDENTITY_PROVIDER, login.provider, view.revision_of(kinds.IDENTITY_PROVIDER, login.provider))


def refuse_unreadable(view: View, login: UserLogin) -> None:
    """Do not call a subject nobody's when whose it is cannot be read. Raises TryAgain."""
    key = claim_id(login)
    if key in view.unreadable(kinds.NAME):
        raise TryAgain(f"who logs in as {login.subject!r} cannot be read; `cairn cluster fsck` lists what is damaged")
    held = view.get(kinds.NAME, key)
    if held is not None:
        resolution.refuse_unreadable(view, nouns.USER, held.id, f"who logs in as {login.subject!r}")


def unlink(txn: Txn, view: View, user: User) -> None:
    """Give back what a user had claimed."""
    key = claim_id(user.spec.login)
    held = view.get(kinds.NAME, key)
    if held is not None and held.id == user.id:
        txn.check(kinds.NAME, key, view.revision_of(kinds.NAME, key)).delete(kinds.NAME, key)


def relink(txn: Txn, view: View, caller: Caller, new: User, old: User) -> None:
    """Change as whom a user logs in, if its new record says so, with an id for a name. Raises Refused."""
    if new.spec.login == old.spec.login:
        return
    if new.spec.HasField("login"):
        login = new.spec.login
        if new.spec.type == UserSpec.TYPE_SERVICE:
            raise Invalid("user.spec.login", "a service account does not log in: give it API tokens")
        login.provider = looked_up(view, caller, nouns.IDENTITY_PROVIDER, "", login.provider, "user.spec.login.provider").id
        if not 0 < len(login.subject) <= SUBJECT_CHARACTERS_MAX or not login.subject.isprintable():
            say = f"1 to {SUBJECT_CHARACTERS_MAX} printable characters are wanted: what the provider's tokens say as `sub`"
            raise Invalid("user.spec.login.subject", say)
    if new.spec.login == old.spec.login:
        return
    if old.spec.HasField("login"):
        unlink(txn, view, old)
    if new.spec.HasField("login"):
        # Whoever logs in as that subject may do what the user may.
        refuse_exceeding(view, caller, new)
        link(txn, view, new)


def refuse_exceeding(view: View, caller: Caller, user: User | None) -> None:
    """Refuse who may not do all that a user may to say who that user is. Raises Denied."""
    if caller.kind != "user" or user is None or user.name == caller.id:
        return
    if missing := lacking(authority_of(view, caller), authority(view, user.name)):
        say = f"user {caller.id!r} may not {missing} where {user.name!r} may, and so cannot say who logs in as it"
        raise Denied(say)


def name_of(said: str) -> str:
    """Return what a user is called whom a provider calls so ("Ada.Byron@corp.example": "ada-byron"). Raises BadState."""
    text = said.partition("@")[0].lower().replace(".", "-").replace("_", "-")
    try:
        return validation.name("user.name", text)
    except Invalid as error:
        say = f"you cannot be called {said[:80]!r} here ({error.say}): ask an administrator to make a user for you"
        raise BadState("user", said[:80], say) from error
