# SPDX-License-Identifier: Apache-2.0
"""The control plane: options, the vhost-user session, supervision. Never maps guest memory."""
