"""Reads a PDF from its standard input, and writes how many bytes of text each page has, as JSON.

It runs in a separate process with limited memory and time, because a hostile file can use any
amount of both. It does not import this package, so that it starts fast.
"""

import json
import sys

#: No provider takes more pages.
MAX_PAGES = 1000
#: The limits: bytes of memory, and seconds of CPU time.
MEMORY = 2**30
SECONDS = 10


def limit() -> None:
    """Set the limits of this process, if the system supports them."""
    try:
        import resource
    except ImportError:  # Windows: the parent ends this process in time
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Read the file, and write the answer: a list of numbers, or nothing if it cannot be read."""
    limit()
    import pypdfium2  # pyright: ignore[reportMissingTypeStubs]

    document = pypdfium2.PdfDocument(sys.stdin.buffer.read())
    count = len(document)
    if not 0 < count <= MAX_PAGES:
        json.dump(count, sys.stdout)
        return
    lengths: list[int] = []
    for page in document:
        # Read all text, including text beyond the edges of the page.
        text = page.get_textpage().get_text_range()
        lengths.append(len(text.encode("utf-8", "replace")))
    json.dump(lengths, sys.stdout)


if __name__ == "__main__":
    main()
