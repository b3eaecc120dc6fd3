# SPDX-License-Identifier: Apache-2.0
"""What two parties must agree on: messages, guest memory, vrings, shared memory, channels."""
