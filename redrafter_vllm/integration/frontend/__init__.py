# SPDX-License-Identifier: Apache-2.0
"""Code that runs in vLLM's front end: configuration, command line, requests, exported metrics."""
