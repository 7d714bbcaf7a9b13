"""The provider behind an OpenAI-compatible API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from ...errors import WattfareFundingError
from ...offload import in_thread
from ...transport import AsyncTransport
from ...transport.base import MAX_BODY_BYTES
from ..chat.families import Families
from ..chat.request import DEFAULT_MAX_TOKENS, ChatRequest
from ..metrics import Metrics
from . import documents, generations, model_lists, variants
from .catalog import Catalog, NoListError
from .credential import Credential
from .own_prices import OwnPrices
from .provider_facts import find_provider
from .upstream_http import MAX_ERROR_BYTES, Refusal, UpstreamHTTP
from .upstream_job import JobContext, UpstreamJob
from .upstream_models import UpstreamModels

#: How many images are counted on the event loop. Each of the models that may answer counts them.
MANY_IMAGES = 50
#: The statuses of an upstream without this path.
_NOTHING_THERE = frozenset({404, 405, 501})


class Upstream:
    """The provider behind ``--upstream``.

    Args:
        base_url: the URL before ``/chat/completions`` and ``/models``.
        key: the operator's key, for calls without a payer's key.
        metrics: counts calls that cost more than was reserved.
        default_max_tokens: the token limit of a call that does not set one.
        allow_unpriced: allow models without a fixed price, although the upstream may not report the
            cost of each call.
        hold: the amount that a call without a bound holds, in nano-dollars. None refuses such
            calls, except for those of ``allow_unpriced``, which hold the rest of a budget.
        prices: the operator's own prices, as in ``Settings``.
        media: how models count images, files and audio, as in ``Settings``.
        provider: the name of a row in :mod:`.provider_facts`. None finds the row by the URL.
        max_answer_bytes: the maximum size of an answer that is not a stream, in bytes.
        on_hang_up: what to do with a stream whose client leaves. ``stop`` closes the connection.
            ``finish`` reads the stream to its end, because the upstream continues anyway. None
            depends on the provider.
    """

    def __init__(
        self,
        base_url: str,
        key: str | None = None,
        metrics: Metrics | None = None,
        *,
        transport: AsyncTransport | None = None,
        default_max_tokens: int = DEFAULT_MAX_TOKENS,
        allow_unpriced: bool = False,
        prices: Mapping[str, str] | None = None,
        media: Mapping[str, Mapping[str, int]] | None = None,
        provider: str | None = None,
        max_answer_bytes: int = MAX_BODY_BYTES,
        on_hang_up: Literal["stop", "finish"] | None = None,
        hold: int | None = None,
    ) -> None:
        self.http = UpstreamHTTP(base_url, Credential(key), transport)
        self.base_url = self.http.base_url
        self.provider = find_provider(self.base_url, provider)
        self._catalog = Catalog(
            self.http.list_models,
            self.base_url,
            OwnPrices(prices),
            default_first=not (self.provider.sells and self.provider.published_prices),
        )
        self._models = UpstreamModels(
            self._catalog,
            self.provider,
            Families(media),
            allow_unpriced=allow_unpriced,
            hold=hold,
        )
        on_hang_up = on_hang_up or ("stop" if self.provider.stops_on_hang_up else "finish")
        self._context = JobContext(
            self.http,
            self._models,
            metrics or Metrics(),
            default_max_tokens,
            max_answer_bytes,
            reads_to_end=on_hang_up == "finish",
        )
        self.keeps_records = self.provider.generation_record

    async def models(self) -> bytes:
        """The upstream's own list."""
        return self.http.operator.redactor.answer(await self._catalog.body())

    def names_of(self, model: str) -> tuple[str, ...]:
        """The names under which the list may have this model, or the model of this variant."""
        base = variants.read(model).base if self.provider.variants else model
        return (*model_lists.names_of(model), *model_lists.names_of(base))

    async def unpriced_models(self) -> tuple[int, list[str]]:
        """How many models the upstream lists, and the names of those without a fixed price.

        Raises:
            WattfareError: ``upstream``; the list cannot be read.
        """
        return await self._catalog.unpriced()

    async def prepare(self, request: ChatRequest, request_id: str) -> UpstreamJob:
        """Prepare the call, with its limit and its price."""
        models = await self._models.offers(request)
        hold = self._models.hold(request, models)
        if request.attachments is not None and request.attachments.documents:
            read = await documents.read(request.attachments)
            request = msgspec.structs.replace(request, attachments=read)
        if request.large or _has_many_images(request):
            return await in_thread(UpstreamJob, self._context, request, models, request_id, hold)
        return UpstreamJob(self._context, request, models, request_id, hold)

    async def true_cost(
        self, generation_id: str, credential: Credential | None = None
    ) -> int | None:
        """The cost in the generation's record, in nano-dollars; None if there is no record yet."""
        path = generations.path(generation_id)
        record = await self.http.ask("GET", path, MAX_ERROR_BYTES, credential=credential)
        if isinstance(record, Refusal):
            raise record.error
        return generations.cost(record)

    async def check_key(self, key: str) -> bytes | None:
        """Check a payer's key with a request that costs nothing. Returns OpenRouter's facts about
        the key; None for another upstream, or if there are none.

        Raises:
            WattfareFundingError: the upstream refuses the key.
            WattfareError: it does not answer, or it fails.
        """
        credential = Credential(key, "")
        if (path := self.provider.key_path) is not None:
            answer = await self.http.ask("GET", path, MAX_ERROR_BYTES, credential=credential)
            if not isinstance(answer, Refusal):
                return answer
            if answer.status not in _NOTHING_THERE:
                raise answer.error
        try:
            await self.http.list_models(credential)
        except NoListError as no_list:
            # An upstream without a list does not check the key. The first call does.
            if isinstance(no_list.__cause__, WattfareFundingError):
                raise no_list.__cause__ from None
        return None

    async def close(self) -> None:
        """Close the connections."""
        await self._catalog.close()
        await self.http.close()


def _has_many_images(request: ChatRequest) -> bool:
    # Each takes up to 0.2 ms, for each model that may answer.
    attached = request.attachments
    return attached is not None and len(attached.images) * len(request.models) > MANY_IMAGES
