"""The models of an upstream: which of them may answer, at which price and within which limits."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import WattfareError, invalid_request
from ...logs import get_logger
from ..chat.families import Families
from ..chat.price import Price
from ..chat.request import ChatRequest
from . import own_tools, variants
from .catalog import Catalog
from .offers import Offer
from .output_limits import LearnedLimits, ModelLimits
from .provider_facts import OTHER, ProviderFacts

log = get_logger("wattfare_mw.service", show_messages=False)

#: How many models without a reported cost are remembered.
MAX_WITHOUT_COST = 1000
#: How many models are cached with their prices and families.
MAX_OFFERS = 1000
#: OpenRouter's saved settings, after or instead of a model's name, such as `@preset/mine`.
PRESET = "@preset/"


class UpstreamModels:
    """The models of an upstream.

    Args:
        catalog: their list and prices.
        provider: the facts about the upstream.
        families: how they count images, files and audio.
        allow_unpriced: allow models without a fixed price, although the upstream may not report the
            cost of each call.
        hold: the amount that a call without a bound holds, in nano-dollars. None refuses such
            calls, except for those of ``allow_unpriced``, which hold the rest of a budget.
    """

    def __init__(
        self,
        catalog: Catalog,
        provider: ProviderFacts,
        families: Families,
        *,
        allow_unpriced: bool = False,
        hold: int | None = None,
    ) -> None:
        self.provider = provider
        self.learned = LearnedLimits()
        self._catalog = catalog
        self._families = families
        self._allow_unpriced = allow_unpriced
        self._hold = hold
        # Offers with a price, and the list that they come from.
        self._known_offers: dict[str, Offer] = {}
        self._known_by: object | None = None
        self._without_cost: dict[str, None] = {}  # names of models, the oldest first

    async def offers(self, request: ChatRequest) -> list[Offer]:
        """The offer of each model that this request names.

        Raises:
            WattfareError: ``invalid_request``; a model does not exist or is not allowed.
        """
        return [self._known(model) or await self._offer(model) for model in request.models]

    def hold(self, request: ChatRequest, found: Sequence[Offer]) -> int | None:
        """The amount that this call holds, in nano-dollars; None if its cost has a bound."""
        unbounded = request.held or True in [offer.unbounded for offer in found]
        return self._hold if unbounded else None

    def limits(self, request: ChatRequest, found: Sequence[Offer]) -> ModelLimits:
        """The lowest limits of the models of this request, as far as they are known."""
        limits: list[ModelLimits] = []
        for model, offer in zip(request.models, found, strict=True):
            learned, known = self.learned.most(model, stream=request.stream), offer.limits
            limits.append(known if learned is None else ModelLimits(learned, known.context))
        return limits[0] if len(limits) == 1 else ModelLimits.of_all(limits)

    def found_no_cost(self, model: str) -> None:
        """Remember that a complete answer of this model without a price had no cost."""
        if model in self._without_cost:
            return
        while len(self._without_cost) >= MAX_WITHOUT_COST:
            del self._without_cost[next(iter(self._without_cost))]
        self._without_cost[model] = None
        log.error(
            "the upstream reports no cost for model=%r, which has no price. Its calls are refused "
            "from now on. Set a price with --price 'MODEL=IN/OUT'",
            model,
        )

    def _known(self, model: str) -> Offer | None:
        """The cached offer of a model. It is valid until the list of models is refreshed."""
        by = self._catalog.fresh
        return self._known_offers.get(model) if by is not None and by is self._known_by else None

    async def _offer(self, model: str) -> Offer:
        variant = variants.read(model) if self.provider.variants else variants.Variant(model)
        price = await self._price(model, variant.base)
        if price is None and not self._may_be_unpriced(model):
            raise self._unpriced(model)
        is_open_ended = own_tools.is_open_ended(model)
        if self._hold is None and is_open_ended:
            raise invalid_request(
                f"`model` {model!r} is not allowed: it searches or calls other models by itself, "
                "so its cost has no bound."
            )
        offer = Offer(
            price,
            variant,
            self._families.of(variant.base),
            self._catalog.limits(model),
            unbounded=price is None or _names_preset(model) or is_open_ended,
        )
        by = self._catalog.fresh
        if price is not None and by is not None:
            if by is not self._known_by or len(self._known_offers) >= MAX_OFFERS:
                self._known_by, self._known_offers = by, {}
            self._known_offers[model] = offer
        return offer

    async def _price(self, model: str, base: str) -> Price | None:
        if not _names_preset(model):
            return await self._catalog.price(model, base)
        if self._hold is None:
            raise invalid_request(
                f"`model` {model!r} is not allowed, because the service cannot see the fields of a"
                " preset."
            )
        # If the preset names no model, the model before it counts.
        model = model.partition(PRESET)[0]
        return await self._catalog.price(model) if model else None

    def _may_be_unpriced(self, model: str) -> bool:
        # An unknown upstream with presets is a gateway to OpenRouter, which reports each cost.
        reports_cost = self.provider.reports_cost or (
            self.provider is OTHER and _names_preset(model)
        )
        allowed = self._allow_unpriced or (self._hold is not None and reports_cost)
        return allowed and model not in self._without_cost

    def _unpriced(self, model: str) -> WattfareError:
        words = (
            f"There is no fixed price for {model!r}, so its cost cannot be bounded. "
            "The operator of the service can set a price with --price 'MODEL=IN/OUT', in USD per "
            "million tokens."
        )
        may_report_cost = self.provider.reports_cost or self.provider is OTHER
        if may_report_cost and not self._allow_unpriced:
            words += " If the upstream reports the cost of each call, use --allow-unpriced instead."
        return invalid_request(words)


def _names_preset(model: str) -> bool:
    return PRESET in model
