"""The service counts prompts with OpenAI's tokenizers."""

from wattfare_mw.service.chat.tokenizer import count, encoding_of

encoding = encoding_of("openai/gpt-4o")
assert encoding is not None
assert count(encoding, "Say hello.") == 3
