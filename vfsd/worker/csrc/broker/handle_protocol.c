/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/broker/handle_protocol.h"

#include <errno.h>
#include <string.h>

int handle_send(int sock, const void *data, size_t len, const int *fds, uint32_t count)
{
	union handle_fds passed = {.header = {.cmsg_len = CMSG_LEN(count * sizeof(int)),
					      .cmsg_level = SOL_SOCKET,
					      .cmsg_type = SCM_RIGHTS}};
	struct iovec packet = {(void *)(uintptr_t)data, len}; /* which sendmsg(2) only reads */
	struct msghdr message = {.msg_iov = &packet, .msg_iovlen = 1};

	if (count) {
		message.msg_control = &passed;
		message.msg_controllen = CMSG_SPACE(count * sizeof(int));
		memcpy(CMSG_DATA(&passed.header), fds, count * sizeof(int));
	}
	return sendmsg(sock, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}
