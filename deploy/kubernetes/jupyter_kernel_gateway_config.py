"""Settings of a gateway that has one kernel in its life: the container ends with it, and nothing of a session meets the next one.

The gateway is the first process of its container, so that the code in the kernel cannot take its place: without it, all of it ends.
"""

import ctypes
import os

from kernel_gateway.services.kernels.manager import SeedingMappingKernelManager

_PR_SET_DUMPABLE = 4
_MEGABYTE = 1024 * 1024


class OneKernel(SeedingMappingKernelManager):
    """Ends the gateway once its kernel is gone: deleted, culled, or died for good."""

    def remove_kernel(self, kernel_id):
        super().remove_kernel(kernel_id)
        os._exit(0)


# Code in the kernel runs as the same user: it must not read the token in the environment of this process, nor write into its memory.
if ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
    raise SystemExit("The gateway cannot protect itself from its kernel.")

c = get_config()  # noqa: F821 - there when Jupyter reads this file
c.KernelGatewayApp.auth_token = os.environ.pop("KG_AUTH_TOKEN")
c.KernelGatewayApp.max_kernels = 1
c.KernelGatewayApp.kernel_manager_class = OneKernel
# Of a server that was killed; a little longer than its sandbox_idle_seconds.
c.OneKernel.cull_idle_timeout = 2 * 3600
c.OneKernel.cull_busy = True
c.OneKernel.cull_interval = 60
# The server ends connections that send more than it keeps; these are for figures and logs that may come at once.
c.ZMQChannelsWebsocketConnection.iopub_data_rate_limit = 16 * _MEGABYTE
c.ZMQChannelsWebsocketConnection.iopub_msg_rate_limit = 5000
