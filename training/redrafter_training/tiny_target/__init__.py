# SPDX-License-Identifier: Apache-2.0
"""A small Llama and its tokenizer, trained on the standard library's sources, for tests and demos."""
