# SPDX-License-Identifier: Apache-2.0
"""A streamed chat with a running server: python examples/openai_streaming.py QUESTION [URL]"""

import sys

from openai import OpenAI


def main(question: str, url: str = "http://localhost:8000") -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    model = client.models.list().data[0].id
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=100,
        temperature=0.0,
        stream=True,
        stream_options={"include_usage": True},
        # Optional, and without effect on the text: this request drafts at most 8 nodes a step. {"enabled": False}
        # switches drafting off for it.
        extra_body={"redrafter": {"num_speculative_tokens": 8}},
    )
    chunks = 0
    for chunk in stream:
        if chunk.choices:
            text = chunk.choices[0].delta.content or ""
            chunks += bool(text)
            print(text, end="", flush=True)
        elif chunk.usage is not None:  # the last one
            # A chunk has all tokens of a step, so there are fewer chunks than tokens.
            print(f"\n[{chunk.usage.completion_tokens} tokens in {chunks} chunks]")


if __name__ == "__main__":
    main(*sys.argv[1:])
