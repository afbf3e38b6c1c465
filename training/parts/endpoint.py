"""The options of an endpoint that is asked."""

from dataclasses import dataclass

from hyperlora.endpoint import Host
from training.parts.options import option


@dataclass(kw_only=True)
class EndpointOptions(Host):
    """Who is asked, and how patiently."""

    url: str = option("https://api.openai.com/v1", "endpoint that speaks OpenAI's chat completions, up to its /v1")
    model: str = option("gpt-4o-mini", "the endpoint's name of the model")
    key_variable: str = option("OPENAI_API_KEY", "environment variable with the key; none is sent where it is unset")
    temperature: float = option(1.0, "of the sampling", least=0)
    max_tokens: int = option(
        4096, "most tokens of an answer; 0: not sent, for endpoints that refuse the field", least=0
    )
    concurrency: int = option(
        8, "queries at a time: sent in parallel, or decoded together by the local model", least=1, most=10**6
    )
    retries: int = option(
        8, "tries after a failure that may pass (limits, overload, time-outs), ever further apart", least=0
    )
    timeout: float = option(
        120.0, "seconds without a sign of the endpoint that count as a failure", above=0, most=10**6
    )
