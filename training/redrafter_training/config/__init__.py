# SPDX-License-Identifier: Apache-2.0
"""What one training is asked to do: recipe and job."""
