"""What travels and what does not: a pure function of manifests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_diffah.engine.delta.plan import compute_diff
from prefect_diffah.engine.errors import InvalidDocument
from prefect_diffah.engine.images import ImageName, ImageTree, TreeManifest
from prefect_diffah.engine.oci import Descriptor, Digest, mediatypes


def layer(number: int, size: int | None = None, media_type: str = mediatypes.OCI_LAYER_GZIP) -> Descriptor:
    return Descriptor(media_type=media_type, digest=Digest.of(str(number).encode()), size=number + 1 if size is None else size)


def tree(*layers: Descriptor, name: str = "app", known: bool = True) -> ImageTree:
    seed = "".join(each.digest for each in layers).encode()
    root = Descriptor(media_type=mediatypes.OCI_MANIFEST, digest=Digest.of(b"manifest" + seed), size=100)
    config = Descriptor(media_type=mediatypes.OCI_CONFIG, digest=Digest.of(b"config" + seed), size=50)
    diff_ids = tuple(Digest.of(b"plain" + each.digest.encode()) for each in layers) if known else ()
    return ImageTree(name=ImageName.parse(name), root=root, manifests=(TreeManifest(descriptor=root, config=config, layers=layers, diff_ids=diff_ids),))


NUMBERS = st.lists(st.integers(0, 9), max_size=8)


@given(target=NUMBERS, baselines=st.lists(NUMBERS, max_size=3))
def test_a_layer_travels_unless_a_baseline_has_it(target: list[int], baselines: list[list[int]]) -> None:
    plan = compute_diff([tree(*map(layer, target))], [tree(*map(layer, numbers)) for numbers in baselines])
    present = {layer(number).digest for numbers in baselines for number in numbers}
    layers = [blob for blob in plan.blobs if blob.role == "layer"]
    assert [blob.descriptor for blob in layers] == [layer(number) for number in dict.fromkeys(target)]
    assert all(blob.travels == (blob.descriptor.digest not in present) for blob in layers)
    assert all({source.digest for source in blob.sources} == (present if blob.travels else {blob.descriptor.digest}) for blob in layers)
    assert [blob.role for blob in plan.blobs if blob.role != "layer"] == ["manifest", "config"]
    assert set(plan.travelling) | set(plan.required) == set(plan.blobs)
    assert all(blob.travels for blob in plan.blobs if blob.role != "layer")


@given(target=NUMBERS, baselines=st.lists(NUMBERS, max_size=4), data=st.data())
def test_the_order_of_baselines_is_nothing(target: list[int], baselines: list[list[int]], data: st.DataObject) -> None:
    trees = [tree(*map(layer, numbers)) for numbers in baselines]
    other = data.draw(st.permutations([*trees, *trees]))
    assert compute_diff([tree(*map(layer, target))], trees) == compute_diff([tree(*map(layer, target))], other)


def test_of_one_baseline_known_twice_the_diffids_are_kept() -> None:
    whole, manifest_only = tree(layer(1)), tree(layer(1), known=False)
    for order in ([whole, manifest_only], [manifest_only, whole]):
        (baseline,) = compute_diff([tree(layer(2))], order).images[0].baselines
        assert baseline.layers[0].diff_id is not None


def test_several_targets_share_their_blobs() -> None:
    first, second = tree(layer(1), layer(2), name="one"), tree(layer(2), layer(3), name="two")
    plan = compute_diff([first, second], [tree(layer(1))])
    assert [image.tree.name.name for image in plan.images] == ["one", "two"]
    assert [blob.descriptor.digest for blob in plan.blobs].count(layer(2).digest) == 1
    assert {blob.descriptor.digest for blob in plan.blobs if blob.role == "layer" and blob.travels} == {layer(2).digest, layer(3).digest}


def test_the_name_is_the_targets_own_or_the_one_given() -> None:
    assert str(compute_diff([tree(layer(1), name="app:v2")], []).images[0].tree.name) == "app:v2"
    assert str(compute_diff([tree(layer(1))], [], ImageName.parse("other:1")).images[0].tree.name) == "other:1"


def test_documents_that_disagree_about_a_blob_are_refused() -> None:
    with pytest.raises(InvalidDocument, match="disagree"):
        compute_diff([tree(layer(1, 10))], [tree(layer(1, 11))])
    with pytest.raises(InvalidDocument):
        compute_diff([tree(layer(1, 10), layer(1, 11))], [])


def test_a_blob_in_two_roles_is_listed_in_the_stronger() -> None:
    one, other = tree(layer(1)), tree(layer(2))
    layer_as_config = other.manifests[0].model_copy(update={"config": layer(1)})
    for manifests in ((one.manifests[0], layer_as_config), (layer_as_config, one.manifests[0])):
        plan = compute_diff([one.model_copy(update={"manifests": manifests})], [one])
        (blob,) = (blob for blob in plan.blobs if blob.descriptor.digest == layer(1).digest)
        assert (blob.role, blob.travels) == ("config", True)


def test_a_foreign_layer_says_where_it_comes_from() -> None:
    foreign = layer(1, media_type=mediatypes.DOCKER_FOREIGN_LAYER)
    (blob,) = (blob for blob in compute_diff([tree(foreign)], []).blobs if blob.role == "layer")
    assert "never from its URLs" in blob.reason
