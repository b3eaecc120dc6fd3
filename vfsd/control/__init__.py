# SPDX-License-Identifier: Apache-2.0
"""The programs of operators: finds the daemons of this host, asks them, and changes what they do.

from vfsd.control.client import Client
from vfsd.control.instances import instance_of

with Client(instance_of("vm1")) as client:
    print(client.status().guest)
"""
