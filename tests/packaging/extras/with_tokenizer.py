"""The service counts prompts as OpenAI's models do."""

from wattfare_mw.service.chat import tokenizer

assert tokenizer.__doc__
import bpe_openai  # noqa: E402

assert bpe_openai.get_encoding("o200k_base").count("Say hello.") == 3
