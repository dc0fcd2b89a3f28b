# SPDX-License-Identifier: Apache-2.0
"""The documents as a site: build, check of its links. The configuration is `mkdocs.yml`."""
