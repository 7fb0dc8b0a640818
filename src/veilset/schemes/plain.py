"""No protection: the baseline that every other scheme is compared with."""

from veilset.params import Params
from veilset.schemes.base import Declaration, Pool, Protected, Scheme
from veilset.schemes.randomness import Stream
from veilset.types import Ids, Images, Labels


class PlainParams(Params):
    """Plain images have nothing to set."""


class Plain(Scheme[PlainParams]):
    """Returns the images as they are. Source: ours."""

    name = "plain"
    title = "Plain"
    version = 1
    declares = Declaration(
        keyed=False,
        reversible=True,
        guarantee=None,
        protects_queries=True,
        uses_labels=False,
        provenance="ours",
        source="baseline",
        risk_notes=("The images are published as they are.",),
        shift_safe=True,
        releasable=False,
    )
    Parameters = PlainParams

    def _protect(
        self, images: Images, labels: Labels, ids: Ids, stream: Stream, pool: Pool
    ) -> Protected:
        del labels, ids, stream, pool
        return Protected(images.copy())

    def key_space_bits(self, shape: tuple[int, int, int]) -> float | None:
        """Zero: there is one transform, the identity."""
        del shape
        return 0.0
