# SPDX-License-Identifier: Apache-2.0
"""What runs in vLLM's front end: configuration, command line, exported metrics."""
