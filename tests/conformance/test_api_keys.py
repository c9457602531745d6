"""Access keys on a real API server: tokens that sign, whose secrets are sealed."""

from __future__ import annotations

from typing import Any

from cairn.controller.api import bearer
from cairn.controller.api.signed import canonical, signature_of, verified
from cairn.controller.model.permits import Caller
from cairn.proto import kinds
from cairn.proto.kinds import ROOT
from cairn.proto.v1.api_token_pb2 import (
    ApiToken,
    ApiTokenSpec,
    CreateApiTokenRequest,
    DeleteApiTokenRequest,
    GetApiTokenRequest,
    ListApiTokensRequest,
)

from tests.conformance.api_world import Stubs, World
from tests.conformance.test_api_access import refused
from tests.conformance.test_api_tokens import Code, not_accepted, token, world

__all__ = ["world"]


async def key(stubs: Stubs, request_id: str = "", **spec: Any) -> Any:
    """Make an access key."""
    made = ApiToken(spec=ApiTokenSpec(type=ApiTokenSpec.TYPE_SIGNING, **spec))
    return await stubs.tokens.CreateApiToken(CreateApiTokenRequest(api_token=made, request_id=request_id))


def signed(world: World, id: str, secret: str) -> Caller | None:
    text = canonical("GET", "/iaas/", {"access_key_id": id})
    view, now = world.cache.view, world.clock.now()
    signature = signature_of(secret, text)
    return verified(view, world.core.seals, now, key=id, text=text, signature=signature, source="10.0.0.1")


async def test_an_access_key_signs_and_is_sealed_and_is_no_token(world: World) -> None:
    bob = await world.user("bob", "viewer")
    made = await key(bob)
    id, secret = made.api_token.id, made.secret
    assert (made.token, len(secret)) == ("", 43)
    assert signed(world, id, secret) == Caller("user", "bob", id)
    assert signed(world, id, secret[:-1] + "!") is None
    # Shown, it is worth nothing.
    await not_accepted(world.by_token(bearer.text_of(id, secret)))
    items, _ = await world.store.read(ROOT)
    assert not [item.key for item in items if secret.encode() in item.value]
    shown = await bob.tokens.GetApiToken(GetApiTokenRequest(id=id))
    assert (shown.spec.type, secret in str(shown)) == (ApiTokenSpec.TYPE_SIGNING, False)
    listed = await bob.tokens.ListApiTokens(ListApiTokensRequest(filter="spec.type = SIGNING"))
    assert [each.id for each in listed.api_tokens] == [id]
    assert await world.count(kinds.SECRET) == 1
    await bob.tokens.DeleteApiToken(DeleteApiTokenRequest(id=id))
    assert signed(world, id, secret) is None
    assert await world.count(kinds.SECRET) == 0


async def test_an_access_key_asked_for_again_is_the_same(world: World) -> None:
    bob = await world.user("bob", "viewer")
    id = world.ids.uuid()
    first = await key(bob, id)
    assert await key(bob, id) == first
    # One that could not make it is not shown it.
    short = world.by_token((await token(bob, ttl_s=60))[1])
    assert (await refused(key(short, id)))[0] is Code.PERMISSION_DENIED
    narrow = world.by_token((await token(bob, permissions=["vm.see"]))[1])
    assert (await refused(key(narrow, id)))[0] in (Code.PERMISSION_DENIED, Code.NOT_FOUND)


async def test_no_access_key_is_kept_without_a_key_to_seal_it(world: World) -> None:
    bob = await world.user("bob", "viewer")
    world.core.seals._keys.clear()
    code, say = await refused(key(bob))
    assert (code, "secrets.key" in say) == (Code.FAILED_PRECONDITION, True)
    assert await world.count(kinds.API_TOKEN) == 0
