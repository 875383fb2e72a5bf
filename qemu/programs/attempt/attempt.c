// SPDX-License-Identifier: MIT
/*
 * traits-attempt SOCKET [ACTION...]: does one thing after the other with a socket, as
 * whoever runs it, and prints a line about each. Not one that fails ends the program.
 *
 *   inherited=N         SOCKET is descriptor N
 *   passed=N            SOCKET comes along a unix socket, which is descriptor N
 *   new=DOMAIN,TYPE,PROTOCOL
 *                       SOCKET is made, as socket(2) has the numbers
 *
 *   to=HOST,PORT        where messages go; where the socket is connected to without it
 *   payload=HEX         what messages say; nothing without it
 *   recv=KEY,...        TRAITS_RECV, of no key as well
 *   send=RECORD,...     TRAITS_SEND, of no record as well
 *   message=RECORD,...  sends a message with traits, or one without control data
 *   more=RECORD,...     as message, and more is to come of it
 *   asked               reads TRAITS_RECV
 *   sent                reads TRAITS_SEND
 *   receive             receives a message, for which it waits 10 seconds
 *   peek                looks at the next message, if it is there
 *   errors              receives a message of the error queue, if there is one
 *
 * A RECORD is KEY:LENGTH:BYTE, a value of so many bytes that are all the same. A line is
 * the name of an error, "ok", or what was read: keys, records as KEY:HEX, with "-" for none;
 * in front of a message's its length in bytes.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <error.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/traits.h>

#define MOST	(2 * TRAITS_KEYS_MAX)

static union {
	struct sockaddr any;
	struct sockaddr_in in;
	struct sockaddr_in6 in6;
} to;
static socklen_t to_length;

static uint8_t payload[2048];
static size_t payload_length;

/* Whether this worked; an error becomes the action's line */
static bool worked(long status)
{
	if (status < 0)
		printf("%s\n", strerrorname_np(errno));
	return status >= 0;
}

static void tell(long status)
{
	if (worked(status))
		puts("ok");
}

static void print_records(const struct trait *records, size_t count)
{
	size_t i, j;

	if (!count)
		printf("-");
	for (i = 0; i < count; i++) {
		printf("%s%u:", i ? "," : "", records[i].key);
		for (j = 0; j < records[i].len && j < sizeof(records[i].value); j++)
			printf("%02x", records[i].value[j]);
	}
	putchar('\n');
}

static uint64_t parse_keys(char *text)
{
	uint64_t keys = 0;
	char *word;

	for (word = strtok(text, ","); word; word = strtok(NULL, ","))
		keys |= 1ULL << (strtoul(word, NULL, 10) & 63);
	return keys;
}

static size_t parse_records(char *text, struct trait *records)
{
	unsigned int key, length, byte;
	size_t count = 0;
	char *word;

	for (word = strtok(text, ","); word; word = strtok(NULL, ",")) {
		if (sscanf(word, "%u:%u:%u", &key, &length, &byte) != 3 ||
		    length > sizeof(records->value) || count == MOST)
			error(64, 0, "'%s' is no record", word);
		memset(&records[count], 0, sizeof(*records));
		records[count].key = key;
		records[count].len = length;
		memset(records[count].value, byte, length);
		count++;
	}
	return count;
}

static void parse_payload(const char *text)
{
	unsigned int byte;

	for (payload_length = 0; sscanf(text, "%2x", &byte) == 1; text += 2) {
		if (payload_length == sizeof(payload))
			error(64, 0, "the payload is too long");
		payload[payload_length++] = byte;
	}
}

static void parse_destination(char *text)
{
	char *port = strchr(text, ',');

	if (!port)
		error(64, 0, "'%s' has no port", text);
	*port++ = 0;
	if (inet_pton(AF_INET, text, &to.in.sin_addr) == 1) {
		to.in.sin_family = AF_INET;
		to.in.sin_port = htons(atoi(port));
		to_length = sizeof(to.in);
	} else if (inet_pton(AF_INET6, text, &to.in6.sin6_addr) == 1) {
		to.in6.sin6_family = AF_INET6;
		to.in6.sin6_port = htons(atoi(port));
		to_length = sizeof(to.in6);
	} else {
		error(64, 0, "'%s' is no address", text);
	}
}

/* Where memory is made to be short (the profile "faults"), is this to be tried again? */
static bool try_again(long status, int *tries)
{
	const char *profile = getenv("PACKET_TRAITS_PROFILE");

	return status < 0 && (errno == ENOMEM || errno == ENOBUFS) && profile &&
	       !strcmp(profile, "faults") && (*tries)++ < 200;
}

static void send_message(int fd, const struct trait *records, size_t count, int flags)
{
	static union {
		struct cmsghdr header;
		uint8_t bytes[CMSG_SPACE(MOST * sizeof(struct trait))];
	} control;
	struct iovec vector = { payload, payload_length };
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1 };
	int tries = 0;
	long status;

	if (to_length) {
		message.msg_name = &to;
		message.msg_namelen = to_length;
	}
	if (count) {
		control.header.cmsg_level = SOL_TRAITS;
		control.header.cmsg_type = SCM_TRAITS;
		control.header.cmsg_len = CMSG_LEN(count * sizeof(*records));
		memcpy(CMSG_DATA(&control.header), records, count * sizeof(*records));
		message.msg_control = &control;
		message.msg_controllen = CMSG_SPACE(count * sizeof(*records));
	}
	do {
		status = sendmsg(fd, &message, flags | MSG_NOSIGNAL);
	} while (try_again(status, &tries));
	tell(status);
}

static void receive_message(int fd, int flags)
{
	static union {
		struct cmsghdr header;
		uint8_t bytes[4096];
	} control;
	static uint8_t bytes[65536];
	struct iovec vector = { bytes, sizeof(bytes) };
	struct msghdr message = {
		.msg_iov = &vector, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof(control),
	};
	struct trait records[MOST];
	struct cmsghdr *header;
	size_t count = 0;
	ssize_t length;

	length = recvmsg(fd, &message, flags);
	if (!worked(length))
		return;
	for (header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
		if (header->cmsg_level != SOL_TRAITS)
			continue;
		count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(*records);
		if (count > MOST)
			error(1, 0, "%zu records", count);
		memcpy(records, CMSG_DATA(header), count * sizeof(*records));
	}
	printf("%zd ", length);
	print_records(records, count);
}

static void read_mask(int fd)
{
	uint64_t keys = 0;
	socklen_t length = sizeof(keys);
	const char *comma = "";
	int key;

	if (!worked(getsockopt(fd, SOL_TRAITS, TRAITS_RECV, &keys, &length)))
		return;
	if (!keys)
		printf("-");
	for (key = 0; key < 64; key++)
		if (keys >> key & 1) {
			printf("%s%d", comma, key);
			comma = ",";
		}
	putchar('\n');
}

static void act(int fd, char *action)
{
	struct trait records[MOST];
	socklen_t length = sizeof(records);
	char *operand = strchr(action, '=');
	int tries = 0;
	size_t count;
	uint64_t keys;
	long status;

	if (operand)
		*operand++ = 0;
	if (!strcmp(action, "asked")) {
		read_mask(fd);
	} else if (!strcmp(action, "sent")) {
		if (worked(getsockopt(fd, SOL_TRAITS, TRAITS_SEND, records, &length)))
			print_records(records, length / sizeof(*records));
	} else if (!strcmp(action, "receive")) {
		receive_message(fd, 0);
	} else if (!strcmp(action, "peek")) {
		receive_message(fd, MSG_PEEK | MSG_DONTWAIT);
	} else if (!strcmp(action, "errors")) {
		receive_message(fd, MSG_ERRQUEUE);
	} else if (!operand) {
		error(64, 0, "what is '%s'?", action);
	} else if (!strcmp(action, "to")) {
		parse_destination(operand);
		puts("ok");
	} else if (!strcmp(action, "payload")) {
		parse_payload(operand);
		puts("ok");
	} else if (!strcmp(action, "recv")) {
		keys = parse_keys(operand);
		tell(setsockopt(fd, SOL_TRAITS, TRAITS_RECV, &keys, sizeof(keys)));
	} else if (!strcmp(action, "send")) {
		count = parse_records(operand, records);
		do {
			status = setsockopt(fd, SOL_TRAITS, TRAITS_SEND, records,
					    count * sizeof(*records));
		} while (try_again(status, &tries));
		tell(status);
	} else if (!strcmp(action, "message") || !strcmp(action, "more")) {
		count = parse_records(operand, records);
		send_message(fd, records, count, *action == 'm' && action[1] == 'o' ? MSG_MORE : 0);
	} else {
		error(64, 0, "what is '%s'?", action);
	}
}

static int passed_descriptor(int channel)
{
	union {
		struct cmsghdr header;
		uint8_t bytes[CMSG_SPACE(sizeof(int))];
	} control;
	uint8_t byte;
	struct iovec vector = { &byte, 1 };
	struct msghdr message = {
		.msg_iov = &vector, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof(control),
	};
	int fd;

	if (recvmsg(channel, &message, 0) != 1 || !CMSG_FIRSTHDR(&message) ||
	    control.header.cmsg_level != SOL_SOCKET || control.header.cmsg_type != SCM_RIGHTS)
		error(1, errno, "no descriptor came along descriptor %d", channel);
	memcpy(&fd, CMSG_DATA(&control.header), sizeof(fd));
	return fd;
}

int main(int argc, char **argv)
{
	struct timeval limit = { .tv_sec = 10 };
	int domain, type, protocol, fd, i;

	if (argc > 1 && sscanf(argv[1], "inherited=%d", &fd) == 1)
		;
	else if (argc > 1 && sscanf(argv[1], "passed=%d", &fd) == 1)
		fd = passed_descriptor(fd);
	else if (argc > 1 && sscanf(argv[1], "new=%d,%d,%d", &domain, &type, &protocol) == 3)
		fd = socket(domain, type, protocol);
	else
		error(64, 0, "usage: traits-attempt SOCKET [ACTION...]");
	if (fd < 0)
		error(1, errno, "%s", argv[1]);
	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)))
		error(1, errno, "%s", argv[1]);
	for (i = 2; i < argc; i++)
		act(fd, argv[i]);
	return 0;
}
