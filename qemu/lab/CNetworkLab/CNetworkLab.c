// SPDX-License-Identifier: MIT
#define _GNU_SOURCE
#include "CNetworkLab.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/if.h>
#include <linux/if_ether.h>
#include <linux/if_tun.h>
#include <netpacket/packet.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

int lab_enter_network_namespace(int descriptor)
{
	return setns(descriptor, CLONE_NEWNET) ? errno : 0;
}

int lab_make_network_namespace(void)
{
	return unshare(CLONE_NEWNET) ? errno : 0;
}

int lab_drop_thread_privilege(unsigned int user)
{
	/* glibc's own functions would change all threads. To leave user 0
	 * clears the thread's capabilities.
	 */
	return syscall(SYS_setresuid, user, user, user) ? errno : 0;
}

int lab_open_tap(void)
{
	int tap = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETH_P_ALL));

	return tap < 0 ? -errno : tap;
}

int lab_open_tap_on(unsigned int interface)
{
	struct sockaddr_ll at = {
		.sll_family = AF_PACKET,
		.sll_protocol = htons(ETH_P_ALL),
		.sll_ifindex = interface,
	};
	int tap = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	int err;

	if (tap < 0)
		return -errno;
	if (bind(tap, (struct sockaddr *)&at, sizeof(at)) < 0) {
		err = errno;
		close(tap);
		return -err;
	}
	return tap;
}

int lab_open_tap_device(const char *name)
{
	struct ifreq request = { .ifr_flags = IFF_TAP | IFF_NO_PI };
	int device = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	int err;

	if (device < 0)
		return -errno;
	strncpy(request.ifr_name, name, sizeof(request.ifr_name) - 1);
	if (ioctl(device, TUNSETIFF, &request) < 0) {
		err = errno;
		close(device);
		return -err;
	}
	return device;
}

int lab_open_packet_socket(unsigned int interface, unsigned short protocol)
{
	struct sockaddr_ll at = {
		.sll_family = AF_PACKET,
		.sll_protocol = htons(protocol),
		.sll_ifindex = interface,
	};
	int descriptor = socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	int err;

	if (descriptor < 0)
		return -errno;
	if (bind(descriptor, (struct sockaddr *)&at, sizeof(at)) < 0) {
		err = errno;
		close(descriptor);
		return -err;
	}
	return descriptor;
}

int lab_send_frame(unsigned int interface, unsigned short protocol,
		   const void *frame, size_t length)
{
	struct sockaddr_ll to = {
		.sll_family = AF_PACKET,
		.sll_protocol = htons(protocol),
		.sll_ifindex = interface,
	};
	/* Of no protocol: it receives nothing, and is no tap */
	int out = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	int err = 0;

	if (out < 0)
		return errno;
	if (sendto(out, frame, length, 0, (struct sockaddr *)&to, sizeof(to)) < 0)
		err = errno;
	close(out);
	return err;
}

int lab_keep_thread_capabilities(unsigned long long capabilities)
{
	struct __user_cap_header_struct header = {
		.version = _LINUX_CAPABILITY_VERSION_3,
	};
	struct __user_cap_data_struct data[2] = {};
	int i;

	for (i = 0; i < 2; i++) {
		data[i].effective = capabilities >> 32 * i;
		data[i].permitted = data[i].effective;
	}
	return syscall(SYS_capset, &header, data) ? errno : 0;
}

int lab_attach_netfilter(int program, unsigned int family, unsigned int hook, int priority)
{
	/* As the kernel's union bpf_attr has it since Linux 6.4, which libbpf 1.1 does not
	 * know
	 */
	struct {
		unsigned int program;
		unsigned int target;
		unsigned int attach_type;
		unsigned int flags;
		unsigned int family;
		unsigned int hook;
		int priority;
		unsigned int netfilter_flags;
	} attributes = {
		.program = program,
		.attach_type = 45,	/* BPF_NETFILTER */
		.family = family,
		.hook = hook,
		.priority = priority,
	};
	int link = syscall(SYS_bpf, 28 /* BPF_LINK_CREATE */, &attributes, sizeof(attributes));

	return link < 0 ? -errno : link;
}

int lab_pass_descriptor(int channel, int descriptor)
{
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = {};
	char byte = 0;
	struct iovec vector = { &byte, 1 };
	struct msghdr message = {
		.msg_iov = &vector, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof(control),
	};

	control.header.cmsg_level = SOL_SOCKET;
	control.header.cmsg_type = SCM_RIGHTS;
	control.header.cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(&control.header), &descriptor, sizeof(int));
	return sendmsg(channel, &message, MSG_NOSIGNAL) < 0 ? errno : 0;
}

long lab_splice(int socket, int pipe, size_t length)
{
	ssize_t count = splice(socket, NULL, pipe, NULL, length, SPLICE_F_NONBLOCK);

	return count < 0 ? -errno : count;
}
