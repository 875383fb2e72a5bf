// SPDX-License-Identifier: Apache-2.0
/*
 * traits-fuzz [--calls N] [--seconds N] [--threads N] [--seed N]: calls setsockopt(), getsockopt(),
 * sendmsg() and recvmsg() (and their forms for many messages) with traits, with lengths,
 * addresses and contents of which some are right and some are not, on sockets of each kind.
 *
 * First one thread makes N calls. What each has to do is worked out beside it: an error
 * of its own, what an option holds afterwards, what a datagram carries when it arrives.
 * Half of the calls are made without capabilities. Then, for that many seconds, threads
 * call on the same sockets while others remove and make keys, close sockets and write to
 * the buffers; there only the form of what comes back is looked at, and the kernel has to
 * hold. The first part is repeated by its seed, which is printed.
 *
 * Prints a line "call errno count" for each outcome, errno 0 for success, and how many
 * datagrams and traits of the first part were compared with what was sent. Status 1 and
 * a line that says what was expected if something is wrong.
 *
 * Makes a network namespace for itself. Needs the capabilities of root.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <error.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/capability.h>
#include <linux/genetlink.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/traits.h>
#include <linux/traits_netlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <libmnl/libmnl.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT	103
#endif

#define KEYS		12
#define ALL_KEYS	64
#define RECORDS		80
#define STORE		192
#define PAGES		20
#define PORT		4260
#define DATAGRAMS	4096
#define ERRNOS		140
#define BATCH		4

enum call { SET_RECV, SET_SEND, GET_RECV, GET_SEND, SEND, SEND_MANY, RECEIVE, RECEIVE_MANY, CALLS };

static const char *const call_names[CALLS] = {
	"setsockopt-recv", "setsockopt-send", "getsockopt-recv", "getsockopt-send",
	"sendmsg", "sendmmsg", "recvmsg", "recvmmsg",
};

static atomic_ulong outcomes[CALLS][ERRNOS];

/* Of which it is known with what they were sent */
static unsigned long compared_datagrams, compared_traits;

/* A key as it is registered now; made counts how often */
struct key {
	unsigned int id, size, flags, made;
};

static struct key keys[KEYS];
/* For each number the key that has it, or NULL */
static struct key *numbers[ALL_KEYS];

/* Traits with which something was said to be sent */
struct sent {
	unsigned int count;
	struct {
		unsigned int id, size, made;
		uint8_t value[16];
	} traits[RECORDS];
};

enum kind { UDP4, UDP6, MAPPED, UDPLITE, RAW4, RAW6, HEADER, PING4, PING6, PACKET, TCP, UNIX, KINDS };

struct slot {
	enum kind kind;
	int fd;
	struct sockaddr_storage to;
	socklen_t to_len;
	/* What the options hold */
	uint64_t mask;
	/* Up to this datagram it may have asked for nothing: they were stripped then */
	uint64_t silent;
	struct sent sticky;
	/* Of a datagram under way */
	bool corked;
	uint64_t cork;
};

#define SLOTS	(2 * KINDS)

static struct slot slots[SLOTS];

/* What the last datagrams were sent with, by their number modulo DATAGRAMS */
static struct {
	uint64_t number;
	bool refused;
	struct sent sent;
} datagrams[DATAGRAMS];

static uint64_t datagram_count;

struct thread {
	uint64_t state;
	/* Disturbed: somebody else writes to its memory */
	bool checked, privileged, disturbed;
	unsigned long call;
	/* PAGES that can be written, and one behind that cannot be touched */
	uint8_t *memory;
	size_t page;
};

static uint64_t seed;

static void __attribute__((format(printf, 2, 3), noreturn))
wrong(const struct thread *thread, const char *format, ...)
{
	va_list arguments;

	flockfile(stdout);
	printf("wrong: seed %llu, call %lu%s: ", (unsigned long long)seed, thread->call,
	       thread->privileged ? "" : ", without capabilities");
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	putchar('\n');
	fflush(stdout);
	_exit(1);
}

/* xorshift64*, of Vigna: small, and the same everywhere */
static uint64_t any(struct thread *thread)
{
	thread->state ^= thread->state >> 12;
	thread->state ^= thread->state << 25;
	thread->state ^= thread->state >> 27;
	return thread->state * 0x2545f4914f6cdd1dULL;
}

static unsigned int below(struct thread *thread, unsigned int bound)
{
	return (any(thread) >> 32) % bound;
}

static bool one_in(struct thread *thread, unsigned int bound)
{
	return !below(thread, bound);
}

/* ---- registry ---- */

struct registry {
	struct mnl_socket *socket;
	uint16_t family;
	char buffer[8192];
};

static struct nlmsghdr *request(struct registry *registry, uint16_t family, uint8_t command)
{
	struct nlmsghdr *message = mnl_nlmsg_put_header(registry->buffer);
	struct genlmsghdr *header;

	message->nlmsg_type = family;
	message->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
	header = mnl_nlmsg_put_extra_header(message, sizeof(*header));
	header->cmd = command;
	header->version = 1;
	return message;
}

static int attribute_of(const struct nlattr *attribute, void *data)
{
	const struct nlattr **found = data;

	if (mnl_attr_get_type(attribute) < 16)
		found[mnl_attr_get_type(attribute)] = attribute;
	return MNL_CB_OK;
}

/* Sends it and reads up to the acknowledgement; a number of the reply goes to @value */
static int exchange(struct registry *registry, struct nlmsghdr *message, unsigned int type,
		    unsigned int *value)
{
	char reply[8192];
	ssize_t length;

	if (mnl_socket_sendto(registry->socket, message, message->nlmsg_len) < 0)
		return errno;
	for (;;) {
		struct nlmsghdr *header = (struct nlmsghdr *)reply;
		int left;

		length = mnl_socket_recvfrom(registry->socket, reply, sizeof(reply));
		if (length < 0)
			return errno;
		for (left = length; mnl_nlmsg_ok(header, left); header = mnl_nlmsg_next(header, &left)) {
			const struct nlattr *found[16] = {};

			if (header->nlmsg_type == NLMSG_ERROR)
				return -((struct nlmsgerr *)mnl_nlmsg_get_payload(header))->error;
			mnl_attr_parse(header, sizeof(struct genlmsghdr), attribute_of, found);
			if (value && found[type])
				*value = mnl_attr_get_payload_len(found[type]) == 2 ?
					 mnl_attr_get_u16(found[type]) : mnl_attr_get_u32(found[type]);
		}
	}
}

static void open_registry(struct registry *registry)
{
	struct nlmsghdr *message;
	unsigned int family = 0;

	registry->socket = mnl_socket_open(NETLINK_GENERIC);
	if (!registry->socket || mnl_socket_bind(registry->socket, 0, MNL_SOCKET_AUTOPID) < 0)
		error(1, errno, "netlink");
	message = request(registry, GENL_ID_CTRL, CTRL_CMD_GETFAMILY);
	mnl_attr_put_strz(message, CTRL_ATTR_FAMILY_NAME, TRAITS_FAMILY_NAME);
	if (exchange(registry, message, CTRL_ATTR_FAMILY_ID, &family) || !family)
		error(1, 0, "this kernel has no packet traits");
	registry->family = family;
}

/* Makes a key, of another size than before; it may get another number */
static int make_key(struct registry *registry, struct key *key)
{
	static const unsigned int sizes[] = { 4, 8, 16 };
	struct nlmsghdr *message = request(registry, registry->family, TRAITS_CMD_KEY_NEW);
	unsigned int index = key - keys, id = ALL_KEYS;
	char name[32];
	int err;

	snprintf(name, sizeof(name), "fuzz.%u.%u", (unsigned int)getpid(), index);
	key->size = sizes[(index + key->made) % 3];
	key->flags = index / 3;
	mnl_attr_put_strz(message, TRAITS_A_KEY_NAME, name);
	mnl_attr_put_u32(message, TRAITS_A_KEY_SIZE, key->size);
	mnl_attr_put_u32(message, TRAITS_A_KEY_FLAGS, key->flags);
	/* Under the number that it had: what has it on record must not take it for the same */
	if (key->made)
		mnl_attr_put_u32(message, TRAITS_A_KEY_ID, key->id);
	err = exchange(registry, message, TRAITS_A_KEY_ID, &id);
	if (err)
		return err;
	if (id >= ALL_KEYS)
		error(1, 0, "the kernel gave key %s no number", name);
	key->id = id;
	key->made++;
	return 0;
}

static int remove_key(struct registry *registry, const struct key *key)
{
	struct nlmsghdr *message = request(registry, registry->family, TRAITS_CMD_KEY_DEL);

	mnl_attr_put_u32(message, TRAITS_A_KEY_ID, key->id);
	return exchange(registry, message, 0, NULL);
}

/* ---- what has to come of a call ---- */

static const struct key *key_of(unsigned int id, unsigned int made)
{
	const struct key *key = id < ALL_KEYS ? numbers[id] : NULL;

	return key && (!made || key->made == made) ? key : NULL;
}

/* Without those whose keys are gone */
static void prune(struct sent *sent)
{
	unsigned int i, left = 0;

	for (i = 0; i < sent->count; i++) {
		if (key_of(sent->traits[i].id, sent->traits[i].made))
			sent->traits[left++] = sent->traits[i];
	}
	sent->count = left;
}

static void put_trait(struct sent *sent, const struct trait *record)
{
	unsigned int i;

	for (i = 0; i < sent->count; i++) {
		if (sent->traits[i].id == record->key)
			break;
	}
	if (i == sent->count)
		sent->count++;
	sent->traits[i].id = record->key;
	sent->traits[i].size = record->len;
	sent->traits[i].made = numbers[record->key]->made;
	memcpy(sent->traits[i].value, record->value, 16);
}

static unsigned int size_of(const struct sent *sent)
{
	unsigned int i, size = 0;

	for (i = 0; i < sent->count; i++)
		size += sent->traits[i].size;
	return size;
}

static bool may(const struct thread *thread, unsigned int id, unsigned int flag)
{
	return thread->privileged || numbers[id]->flags & flag;
}

static bool receives(enum kind kind)
{
	return kind <= PACKET;
}

static bool sends(enum kind kind)
{
	return kind < PACKET;
}

/* Are these records in form and of registered keys? 0 or an errno value */
static int judge_form(const struct trait *records, size_t len)
{
	static const uint8_t zero[16];
	unsigned int i, count = len / sizeof(*records);
	uint64_t seen = 0;

	if (len % sizeof(*records) || count > ALL_KEYS)
		return EINVAL;
	for (i = 0; i < count; i++) {
		const struct trait *record = &records[i];

		if (record->key >= ALL_KEYS || record->flags ||
		    (record->len != 4 && record->len != 8 && record->len != 16) ||
		    seen >> record->key & 1 || memcmp(record->value + record->len, zero, 16 - record->len))
			return EINVAL;
		seen |= 1ULL << record->key;
	}
	for (i = 0; i < count; i++) {
		if (!numbers[records[i].key])
			return ENOENT;
		if (numbers[records[i].key]->size != records[i].len)
			return EINVAL;
	}
	return 0;
}

static int judge_rights(const struct thread *thread, const struct trait *records, size_t len)
{
	unsigned int i;

	for (i = 0; i < len / sizeof(*records); i++) {
		if (!may(thread, records[i].key, TRAITS_KEY_FLAGS_OPEN_WRITE))
			return EPERM;
	}
	return 0;
}

/* What TRAITS_SEND has to say, and in @sent what it sets */
static int judge_send(const struct thread *thread, const struct slot *slot, const struct trait *records,
		      size_t len, struct sent *sent)
{
	unsigned int i;
	int err = judge_form(records, len);

	sent->count = 0;
	if (err)
		return err;
	for (i = 0; i < len / sizeof(*records); i++)
		put_trait(sent, &records[i]);
	if (size_of(sent) > STORE)
		return ENOSPC;
	for (i = 0; i < slot->sticky.count; i++) {
		if (!may(thread, slot->sticky.traits[i].id, TRAITS_KEY_FLAGS_OPEN_WRITE))
			return EPERM;
	}
	return judge_rights(thread, records, len);
}

/* ---- memory ---- */

/* A place for @len bytes. How many of them can be touched goes to @good */
static uint8_t *place(struct thread *thread, size_t len, size_t *good, bool hostile)
{
	uint8_t *end = thread->memory + PAGES * thread->page;

	*good = len;
	if (len > PAGES * thread->page - 64)
		len = PAGES * thread->page - 64;
	if (!hostile || !one_in(thread, 6)) {
		/* Up to the last byte, at any alignment; or with a few behind */
		if (one_in(thread, 2))
			return end - len;
		return end - len - below(thread, 64);
	}
	*good = 0;
	switch (below(thread, 5)) {
	case 0:
		return NULL;
	case 1:
		return (uint8_t *)8;
	case 2:
		return (uint8_t *)0xffff888000000000UL;
	case 3:
		return end;
	default:
		/* Its end cannot be touched */
		if (!len)
			return end;
		*good = below(thread, len);
		return end - *good;
	}
}

static bool can_touch(const struct thread *thread, const uint8_t *at, size_t len)
{
	return at >= thread->memory && at + len <= thread->memory + PAGES * thread->page;
}

/* ---- calls ---- */

static void note(struct thread *thread, enum call call, int err)
{
	if (err < 0 || err >= ERRNOS)
		wrong(thread, "%s: errno %d", call_names[call], err);
	atomic_fetch_add_explicit(&outcomes[call][err], 1, memory_order_relaxed);
}

static void fill(struct thread *thread, uint8_t *bytes, unsigned int count)
{
	while (count--)
		bytes[count] = any(thread) >> 32;
}

/* Records of which most are right; returns the number of bytes */
static size_t make_records(struct thread *thread, struct trait *records)
{
	unsigned int first = below(thread, KEYS), i, count;
	bool open = one_in(thread, 2);

	count = one_in(thread, 40) ? below(thread, RECORDS) : below(thread, one_in(thread, 4) ? KEYS + 1 : 4);
	memset(records, 0, count * sizeof(*records));
	for (i = 0; i < count; i++) {
		const struct key *key = &keys[(first + i) % KEYS];

		if (open && i < 6)
			key = &keys[6 + (first + i) % 6];
		records[i].key = key->id;
		records[i].len = key->size;
		fill(thread, records[i].value, key->size);
	}
	if (count && one_in(thread, 5)) {
		struct trait *record = &records[below(thread, count)];

		switch (below(thread, 7)) {
		case 0:
			record->key = below(thread, 80);
			break;
		case 1:
			record->key = any(thread) >> 32;
			break;
		case 2:
			record->len = below(thread, 20);
			break;
		case 3:
			record->len = any(thread) >> 48;
			break;
		case 4:
			record->flags = 1U << below(thread, 16);
			break;
		case 5:
			record->value[below(thread, 16)] ^= 1U << below(thread, 8);
			break;
		default:
			*record = records[0];
		}
	}
	return count * sizeof(*records);
}

static void set_send(struct thread *thread, struct slot *slot)
{
	struct trait records[RECORDS];
	size_t len = make_records(thread, records), good;
	uint8_t *at = place(thread, len, &good, true);
	struct sent sent;
	int optlen = len, err, expected;

	if (good)
		memcpy(at, records, good < len ? good : len);
	if (one_in(thread, 10))
		optlen += (int)below(thread, 49) - 24;
	else if (one_in(thread, 40))
		optlen = any(thread) >> 32;

	err = setsockopt(slot->fd, SOL_TRAITS, TRAITS_SEND, at, optlen) ? errno : 0;
	note(thread, SET_SEND, err);
	if (!thread->checked)
		return;

	if (optlen < 0)
		expected = EINVAL;
	else if (!sends(slot->kind))
		expected = EOPNOTSUPP;
	else if (optlen % sizeof(*records) || optlen / sizeof(*records) > ALL_KEYS)
		expected = EINVAL;
	else if (optlen && !can_touch(thread, at, optlen))
		expected = EFAULT;
	else {
		/* Behind the records lies what lies there */
		memcpy(records, at, optlen);
		expected = judge_send(thread, slot, records, optlen, &sent);
	}
	if (err != expected)
		wrong(thread, "TRAITS_SEND, %d bytes, kind %d: errno %d, expected %d", optlen, slot->kind, err,
		      expected);
	if (!err)
		slot->sticky = sent;
}

static void set_recv(struct thread *thread, struct slot *slot)
{
	uint64_t mask = 0;
	unsigned int i, optlen = sizeof(mask);
	bool open = one_in(thread, 2);
	int err, expected = 0;
	size_t good;
	uint8_t *at;

	for (i = 0; i < KEYS; i++) {
		if (one_in(thread, 2) && !(open && !(keys[i].flags & TRAITS_KEY_FLAGS_OPEN_READ)))
			mask |= 1ULL << keys[i].id;
	}
	if (one_in(thread, 10))
		mask |= 1ULL << below(thread, ALL_KEYS);
	if (one_in(thread, 20))
		mask = any(thread);
	at = place(thread, sizeof(mask), &good, true);
	if (good)
		memcpy(at, &mask, good);
	if (one_in(thread, 10))
		optlen = one_in(thread, 2) ? below(thread, 20) : any(thread) >> 32;

	err = setsockopt(slot->fd, SOL_TRAITS, TRAITS_RECV, at, optlen) ? errno : 0;
	note(thread, SET_RECV, err);
	if (!thread->checked)
		return;

	if ((int)optlen < 0)
		expected = EINVAL;
	else if (!receives(slot->kind))
		expected = EOPNOTSUPP;
	else if (optlen != sizeof(mask))
		expected = EINVAL;
	else if (good < sizeof(mask))
		expected = EFAULT;
	else {
		for (i = 0; i < ALL_KEYS; i++) {
			if (!(mask >> i & 1))
				continue;
			if (!numbers[i])
				expected = ENOENT;
			else if (!expected && !may(thread, i, TRAITS_KEY_FLAGS_OPEN_READ))
				expected = EPERM;
		}
	}
	if (err != expected)
		wrong(thread, "TRAITS_RECV, %u bytes, mask %#llx, kind %d: errno %d, expected %d", optlen,
		      (unsigned long long)mask, slot->kind, err, expected);
	if (!err) {
		if (!slot->mask)
			slot->silent = datagram_count + 1;
		slot->mask = mask;
	}
}

static int order(const void *one, const void *other)
{
	return (int)((const struct trait *)one)->key - (int)((const struct trait *)other)->key;
}

static void get(struct thread *thread, struct slot *slot, bool send)
{
	struct trait records[RECORDS] = {};
	unsigned int i, count = 0;
	uint8_t before[2 * sizeof(records)];
	const void *value = &slot->mask;
	int room, optlen, err, expected = 0, needed = sizeof(slot->mask);
	size_t good;
	uint8_t *at;

	if (send) {
		for (i = 0; i < slot->sticky.count; i++) {
			if (thread->checked &&
			    !may(thread, slot->sticky.traits[i].id, TRAITS_KEY_FLAGS_OPEN_READ))
				continue;
			records[count].key = slot->sticky.traits[i].id;
			records[count].len = slot->sticky.traits[i].size;
			memcpy(records[count++].value, slot->sticky.traits[i].value, 16);
		}
		qsort(records, count, sizeof(*records), order);
		value = records;
		needed = count * sizeof(*records);
	}
	room = one_in(thread, 4) ? (int)below(thread, needed + 40) : needed + (int)below(thread, 8);
	at = place(thread, room, &good, true);
	if (good)
		memset(at, 0xee, good);
	optlen = one_in(thread, 50) ? -(int)below(thread, 1000) - 1 : room;
	room = optlen;

	err = getsockopt(slot->fd, SOL_TRAITS, send ? TRAITS_SEND : TRAITS_RECV, at, (socklen_t *)&optlen) ?
	      errno : 0;
	note(thread, send ? GET_SEND : GET_RECV, err);
	if (!thread->checked)
		return;

	if (!(send ? sends(slot->kind) : receives(slot->kind)))
		expected = EOPNOTSUPP;
	else if (room < 0)
		expected = EINVAL;
	else if (room && room < needed)
		expected = EINVAL;
	else if (room && good < (size_t)needed)
		expected = EFAULT;
	if (err != expected)
		wrong(thread, "getsockopt of %s, %d bytes of room for %d, %zu good, kind %d: errno %d, expected %d",
		      send ? "TRAITS_SEND" : "TRAITS_RECV", room, needed, good, slot->kind, err, expected);
	if (expected != EOPNOTSUPP && room >= 0 && optlen != needed)
		wrong(thread, "getsockopt said %d bytes, expected %d", optlen, needed);
	if (!good || err == EFAULT)
		return;
	memset(before, 0xee, sizeof(before));
	if (!err && room)
		memcpy(before, value, needed);
	for (i = 0; i < good && i < sizeof(before); i++) {
		if (at[i] != before[i])
			wrong(thread, "getsockopt wrote %#x at %u, expected %#x", at[i], i, before[i]);
	}
}

/* Puts a control message behind the others; @claim is what it says its length is */
static size_t put_control(uint8_t *control, size_t len, int level, int type, const void *data, size_t data_len,
			  size_t claim)
{
	struct cmsghdr header = { .cmsg_len = claim, .cmsg_level = level, .cmsg_type = type };

	memset(control + len, 0, CMSG_SPACE(data_len));
	memcpy(control + len, &header, sizeof(header));
	memcpy(control + len + CMSG_LEN(0), data, data_len);
	return len + CMSG_SPACE(data_len);
}

struct message {
	struct msghdr header;
	struct iovec vector;
	struct trait records[RECORDS];
	size_t len;
	uint64_t number;
	/* Nothing about it is out of the ordinary but its traits */
	bool plain;
	/* If it is sent it is with these records */
	bool certain;
	uint8_t control[8192];
};

static uint8_t *payload_of(struct thread *thread, uint64_t number, size_t len)
{
	uint8_t *at = thread->memory;
	size_t i;

	for (i = 0; i + 8 <= len; i += 8)
		memcpy(at + i, &number, 8);
	memset(at + i, 0, len - i);
	return at;
}

static void make_message(struct thread *thread, struct slot *slot, struct message *message, bool many)
{
	size_t len = 0, good, payload = 8 * (1 + below(thread, 12));
	uint16_t segment = 8;
	int tos = 4 * below(thread, 40);
	uint8_t *at;

	memset(message, 0, offsetof(struct message, control));
	message->certain = true;
	message->plain = !many && slot->kind <= UDPLITE && !slot->corked;
	message->number = thread->checked ? datagram_count + 1 : 0;

	if (one_in(thread, 8)) {
		len = put_control(message->control, len, IPPROTO_IP, IP_TOS, &tos, sizeof(tos),
				  CMSG_LEN(sizeof(tos)));
		message->plain = false;
	}
	if (!one_in(thread, 5)) {
		message->len = make_records(thread, message->records);
		len = put_control(message->control, len, SOL_TRAITS, SCM_TRAITS, message->records, message->len,
				  CMSG_LEN(message->len));
	}
	if (one_in(thread, 12)) {
		len = put_control(message->control, len, IPPROTO_UDP, UDP_SEGMENT, &segment, sizeof(segment),
				  CMSG_LEN(sizeof(segment)));
		message->plain = false;
		payload = 8 * (1 + below(thread, 60));
	}
	if (one_in(thread, 25)) {
		size_t claims[] = { 0, 1, CMSG_LEN(0) - 1, CMSG_LEN(1), CMSG_LEN(23), CMSG_LEN(25), SIZE_MAX,
				    SIZE_MAX - 7, CMSG_LEN(message->len) + 24, 1 << 20 };

		len = put_control(message->control, len, SOL_TRAITS, one_in(thread, 2) ? SCM_TRAITS : below(thread, 5),
				  message->records, message->len, claims[below(thread, 10)]);
		message->plain = message->certain = false;
	}
	if (one_in(thread, 60)) {
		payload = one_in(thread, 2) ? 0 : 8 * below(thread, 9000);
		message->plain = false;
	}

	message->vector.iov_base = payload_of(thread, slot->corked ? slot->cork : message->number, payload);
	message->vector.iov_len = payload;
	/* Or else ICMP sockets take next to none */
	if (payload && (slot->kind == PING4 || slot->kind == PING6))
		memcpy(message->vector.iov_base, slot->kind == PING4 ? "\x08" : "\x80", 2);
	message->header.msg_iov = &message->vector;
	message->header.msg_iovlen = 1;
	message->header.msg_name = &slot->to;
	message->header.msg_namelen = slot->to_len;
	if (!slot->to_len)
		message->header.msg_name = NULL;
	if (len || one_in(thread, 2)) {
		/* Copied away from the payload, which lies at the beginning */
		at = place(thread, len, &good, !many && one_in(thread, 3));
		if (good)
			memcpy(at, message->control, good < len ? good : len);
		if (good < len)
			message->plain = false;
		message->header.msg_control = at;
		message->header.msg_controllen = len;
		if (many) {
			/* Each has its own */
			message->header.msg_control = message->control;
		} else if (one_in(thread, 30)) {
			message->header.msg_controllen = one_in(thread, 2) ? below(thread, len + 40) : any(thread);
			message->plain = message->certain = false;
		}
	}
}

/* The number under which a datagram's traits are remembered */
static void remember(struct slot *slot, const struct message *message, int err, bool whole)
{
	unsigned int i;

	if (!slot->corked) {
		datagram_count = message->number;
		datagrams[message->number % DATAGRAMS].number = message->certain ? message->number : 0;
		datagrams[message->number % DATAGRAMS].refused = err;
		datagrams[message->number % DATAGRAMS].sent = slot->sticky;
		for (i = 0; !err && message->certain && i < message->len / sizeof(struct trait); i++)
			put_trait(&datagrams[message->number % DATAGRAMS].sent, &message->records[i]);
		slot->cork = message->number;
	}
	/* A piece that cannot be added takes the others with it, or it does not */
	slot->corked = !err && !whole;
}

static void send_one(struct thread *thread, struct slot *slot)
{
	struct message message;
	int flags = MSG_DONTWAIT | MSG_NOSIGNAL, err, expected = 0;
	struct sent together;
	unsigned int i;

	make_message(thread, slot, &message, false);
	if (one_in(thread, 8) && slot->kind <= RAW6) {
		flags |= MSG_MORE;
		message.plain = false;
	}
	if (one_in(thread, 20) || (thread->checked && slot->corked))
		message.plain = false;

	err = sendmsg(slot->fd, &message.header, flags) < 0 ? errno : 0;
	note(thread, SEND, err);
	if (!thread->checked)
		return;

	if (message.plain) {
		together = slot->sticky;
		expected = judge_form(message.records, message.len);
		if (!expected)
			expected = judge_rights(thread, message.records, message.len);
		if (!expected) {
			for (i = 0; i < message.len / sizeof(struct trait); i++)
				put_trait(&together, &message.records[i]);
			if (message.len && size_of(&together) > STORE)
				expected = ENOSPC;
		}
		/* An error of an earlier datagram may be told now, or the queue be full */
		if (err != expected && err != ECONNREFUSED && err != EAGAIN && err != ENOBUFS)
			wrong(thread, "sendmsg, %zu bytes of records, kind %d: errno %d, expected %d", message.len,
			      slot->kind, err, expected);
	}
	if (slot->kind <= UDPLITE) {
		/* Pieces are begun anew after each failure: what came before is not known then */
		if (slot->corked && err) {
			int off = 0;

			setsockopt(slot->fd, IPPROTO_UDP, UDP_CORK, &off, sizeof(off));
			datagrams[slot->cork % DATAGRAMS].number = 0;
		}
		remember(slot, &message, err, !(flags & MSG_MORE));
	}
}

static void send_many(struct thread *thread, struct slot *slot)
{
	static __thread struct message messages[BATCH];
	struct mmsghdr headers[BATCH];
	int i, sent;

	if (thread->checked && slot->corked)
		return;
	for (i = 0; i < BATCH; i++) {
		make_message(thread, slot, &messages[i], true);
		headers[i].msg_hdr = messages[i].header;
	}
	sent = sendmmsg(slot->fd, headers, BATCH, MSG_DONTWAIT | MSG_NOSIGNAL);
	note(thread, SEND_MANY, sent < 0 ? errno : 0);
	if (!thread->checked || slot->kind > UDPLITE)
		return;
	/* Which of them arrives is not known: no traits are remembered, only the number */
	datagram_count++;
	datagrams[datagram_count % DATAGRAMS].number = 0;
}

/* Control data that the kernel gave: its form, and against what was sent */
static void look_at(struct thread *thread, struct slot *slot, const struct msghdr *header, size_t len)
{
	static const uint8_t zero[16];
	size_t at = 0;
	const uint8_t *control = header->msg_control;
	bool found = false;
	struct trait records[ALL_KEYS];
	unsigned int count = 0, i, right = 0;
	uint64_t number = 0;

	while (at + sizeof(struct cmsghdr) <= header->msg_controllen) {
		struct cmsghdr message;

		memcpy(&message, control + at, sizeof(message));
		if (message.cmsg_len < sizeof(message) || message.cmsg_len > header->msg_controllen - at) {
			if (header->msg_flags & MSG_CTRUNC)
				break;
			wrong(thread, "recvmsg: a control message of %zu bytes, with %zu left",
			      (size_t)message.cmsg_len, (size_t)header->msg_controllen - at);
		}
		if (message.cmsg_level == SOL_TRAITS) {
			size_t bytes = message.cmsg_len - CMSG_LEN(0);
			int last = -1;

			if (found || message.cmsg_type != SCM_TRAITS || !bytes || bytes % sizeof(*records) ||
			    bytes > sizeof(records))
				wrong(thread, "recvmsg: message type %d of %zu bytes", message.cmsg_type, bytes);
			found = true;
			count = bytes / sizeof(*records);
			memcpy(records, control + at + CMSG_LEN(0), bytes);
			for (i = 0; i < count; i++) {
				const struct trait *record = &records[i];

				if (record->key >= ALL_KEYS || (int)record->key <= last || record->flags ||
				    (record->len != 4 && record->len != 8 && record->len != 16) ||
				    memcmp(record->value + record->len, zero, 16 - record->len))
					wrong(thread, "recvmsg: record %u: key %u, length %u, flags %u", i,
					      record->key, record->len, record->flags);
				last = record->key;
				if (thread->checked && !(slot->mask >> record->key & 1))
					wrong(thread, "recvmsg: key %u was not asked for", record->key);
			}
		}
		at += CMSG_ALIGN(message.cmsg_len);
	}
	if (!thread->checked || slot->kind > UDPLITE || len < 8 || header->msg_flags & (MSG_CTRUNC | MSG_ERRQUEUE))
		return;

	memcpy(&number, header->msg_iov->iov_base, 8);
	if (!number || datagrams[number % DATAGRAMS].number != number)
		return;
	if (datagrams[number % DATAGRAMS].refused)
		wrong(thread, "datagram %llu arrived, whose sendmsg failed", (unsigned long long)number);
	if (!count && number <= slot->silent)
		return;
	prune(&datagrams[number % DATAGRAMS].sent);
	for (i = 0; i < datagrams[number % DATAGRAMS].sent.count; i++) {
		unsigned int id = datagrams[number % DATAGRAMS].sent.traits[i].id, j;

		if (!(slot->mask >> id & 1))
			continue;
		right++;
		for (j = 0; j < count && records[j].key != id; j++)
			;
		if (j == count || records[j].len != datagrams[number % DATAGRAMS].sent.traits[i].size ||
		    memcmp(records[j].value, datagrams[number % DATAGRAMS].sent.traits[i].value, 16))
			wrong(thread, "datagram %llu arrived with another value of key %u, or none",
			      (unsigned long long)number, id);
	}
	compared_datagrams++;
	compared_traits += count;
	if (right != count)
		wrong(thread, "datagram %llu arrived with %u traits, expected %u", (unsigned long long)number, count,
		      right);
}

static int receive_flags(struct thread *thread)
{
	int flags = MSG_DONTWAIT;

	if (one_in(thread, 8))
		flags |= MSG_PEEK;
	if (one_in(thread, 8))
		flags |= MSG_TRUNC;
	if (one_in(thread, 8))
		flags |= MSG_ERRQUEUE;
	return flags;
}

static void receive_one(struct thread *thread, struct slot *slot)
{
	struct sockaddr_storage from;
	uint8_t payload[2048];
	struct iovec vector = { payload, sizeof(payload) };
	struct msghdr header = { &from, sizeof(from), &vector, 1 };
	size_t room = one_in(thread, 3) ? below(thread, 400) : 2048, good;
	uint8_t *at = place(thread, room, &good, true);
	ssize_t length;
	int err;

	if (good)
		memset(at, 0, good);
	header.msg_control = at;
	header.msg_controllen = one_in(thread, 100) ? any(thread) : room;
	length = recvmsg(slot->fd, &header, receive_flags(thread));
	err = length < 0 ? errno : 0;
	note(thread, RECEIVE, err);
	/* Where the kernel could not write, nothing can be read */
	if (!err && good == room && header.msg_controllen <= room && !thread->disturbed)
		look_at(thread, slot, &header, length < (ssize_t)sizeof(payload) ? length : (ssize_t)sizeof(payload));
}

static void receive_many(struct thread *thread, struct slot *slot)
{
	static __thread uint8_t payloads[BATCH][256], controls[BATCH][2048];
	struct iovec vectors[BATCH];
	struct mmsghdr headers[BATCH] = {};
	int i, count;

	for (i = 0; i < BATCH; i++) {
		vectors[i] = (struct iovec){ payloads[i], sizeof(payloads[i]) };
		headers[i].msg_hdr.msg_iov = &vectors[i];
		headers[i].msg_hdr.msg_iovlen = 1;
		headers[i].msg_hdr.msg_control = controls[i];
		headers[i].msg_hdr.msg_controllen = one_in(thread, 4) ? below(thread, 300) : sizeof(controls[i]);
	}
	count = recvmmsg(slot->fd, headers, BATCH, receive_flags(thread) & ~MSG_PEEK, NULL);
	note(thread, RECEIVE_MANY, count < 0 ? errno : 0);
	for (i = 0; i < count; i++)
		look_at(thread, slot, &headers[i].msg_hdr,
			headers[i].msg_len < sizeof(payloads[i]) ? headers[i].msg_len : sizeof(payloads[i]));
}

static void call_something(struct thread *thread)
{
	/* Mostly those that do both */
	struct slot *slot = &slots[one_in(thread, 4) ? below(thread, SLOTS) : below(thread, 2 * PACKET)];

	thread->call++;
	switch (below(thread, 16)) {
	case 0:
		set_recv(thread, slot);
		break;
	case 1:
	case 2:
		set_send(thread, slot);
		break;
	case 3:
		get(thread, slot, false);
		break;
	case 4:
		get(thread, slot, true);
		break;
	case 5 ... 8:
		send_one(thread, slot);
		break;
	case 9:
		send_many(thread, slot);
		break;
	case 10:
		receive_many(thread, slot);
		break;
	default:
		receive_one(thread, slot);
	}
}

/* ---- sockets ---- */

static uint64_t privileges = 1ULL << CAP_NET_ADMIN | 1ULL << CAP_NET_RAW;

/* Of this thread alone: the kernel's capabilities are a thread's */
static void set_privileged(struct thread *thread, bool privileged)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2];

	if (syscall(SYS_capget, &header, data))
		error(1, errno, "capget");
	data[0].effective = privileged ? data[0].permitted : data[0].permitted & ~(uint32_t)privileges;
	if (syscall(SYS_capset, &header, data))
		error(1, errno, "capset");
	thread->privileged = privileged;
}

static void address(struct slot *slot, int family, const char *host, int port)
{
	struct sockaddr_in *four = (void *)&slot->to;
	struct sockaddr_in6 *six = (void *)&slot->to;

	memset(&slot->to, 0, sizeof(slot->to));
	slot->to.ss_family = family;
	if (family == AF_INET) {
		inet_pton(family, host, &four->sin_addr);
		four->sin_port = htons(port);
		slot->to_len = sizeof(*four);
	} else {
		inet_pton(family, host, &six->sin6_addr);
		six->sin6_port = htons(port);
		slot->to_len = sizeof(*six);
	}
}

static int open_socket(int family, int type, int protocol)
{
	int fd = socket(family, type | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol);

	if (fd < 0)
		error(1, errno, "socket(%d, %d, %d)", family, type, protocol);
	return fd;
}

/* The socket of a slot, made anew, under the descriptor that it had */
static void open_slot(struct slot *slot)
{
	static const int on = 1;
	unsigned int index = slot - slots;
	struct sockaddr_storage own;
	socklen_t own_len = 0;
	int fd, old = slot->fd, port = PORT + index, pair[2];

	slot->kind = index / 2;
	slot->mask = 0;
	slot->sticky.count = 0;
	slot->corked = false;
	slot->to_len = 0;
	switch (slot->kind) {
	case UDP4:
	case UDPLITE:
		fd = open_socket(AF_INET, SOCK_DGRAM, slot->kind == UDP4 ? IPPROTO_UDP : IPPROTO_UDPLITE);
		address(slot, AF_INET, "127.0.0.1", port);
		break;
	case UDP6:
		fd = open_socket(AF_INET6, SOCK_DGRAM, IPPROTO_UDP);
		address(slot, AF_INET6, "::1", port);
		break;
	case MAPPED:
		fd = open_socket(AF_INET6, SOCK_DGRAM, IPPROTO_UDP);
		address(slot, AF_INET6, "::ffff:127.0.0.1", port);
		break;
	case RAW4:
		fd = open_socket(AF_INET, SOCK_RAW, 253);
		address(slot, AF_INET, "127.0.0.1", 0);
		break;
	case RAW6:
		fd = open_socket(AF_INET6, SOCK_RAW, 253);
		address(slot, AF_INET6, "::1", 0);
		break;
	case HEADER:
		fd = open_socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
		address(slot, AF_INET, "127.0.0.1", 0);
		break;
	case PING4:
		fd = open_socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP);
		address(slot, AF_INET, "127.0.0.1", 0);
		break;
	case PING6:
		fd = open_socket(AF_INET6, SOCK_DGRAM, IPPROTO_ICMPV6);
		address(slot, AF_INET6, "::1", 0);
		break;
	case PACKET:
		fd = open_socket(AF_PACKET, SOCK_DGRAM, htons(ETH_P_ALL));
		break;
	case TCP:
		fd = open_socket(AF_INET, SOCK_STREAM, IPPROTO_TCP);
		break;
	default:
		if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair))
			error(1, errno, "socketpair");
		fd = pair[0];
		close(pair[1]);
	}
	if (slot->kind <= UDPLITE) {
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
		own = slot->to;
		own_len = slot->to_len;
		if (bind(fd, (struct sockaddr *)&own, own_len))
			error(1, errno, "bind to port %d", port);
		/* The first of each kind sends to the second, that to a port where nobody is */
		address(slot, slot->to.ss_family,
			slot->kind == UDP6 ? "::1" : slot->kind == MAPPED ? "::ffff:127.0.0.1" : "127.0.0.1",
			index % 2 ? PORT + 100 : port + 1);
		if (index % 2) {
			setsockopt(fd, IPPROTO_IP, IP_RECVERR, &on, sizeof(on));
			setsockopt(fd, IPPROTO_IPV6, IPV6_RECVERR, &on, sizeof(on));
			/* Every other time to the first */
			if (one_in(&(struct thread){ .state = seed + index + 1 }, 2))
				address(slot, slot->to.ss_family, slot->kind == UDP6 ? "::1" :
					slot->kind == MAPPED ? "::ffff:127.0.0.1" : "127.0.0.1", port - 1);
		}
	}
	if (old > 0) {
		if (dup3(fd, old, O_CLOEXEC) < 0)
			error(1, errno, "dup3");
		close(fd);
	} else {
		slot->fd = fd;
	}
}

static void begin_thread(struct thread *thread, uint64_t number)
{
	thread->page = sysconf(_SC_PAGESIZE);
	thread->memory = mmap(NULL, (PAGES + 1) * thread->page, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (thread->memory == MAP_FAILED ||
	    mprotect(thread->memory + PAGES * thread->page, thread->page, PROT_NONE))
		error(1, errno, "mmap");
	thread->state = (seed + number) * 0x9e3779b97f4a7c15ULL | 1;
	any(thread);
}

/* ---- threads ---- */

static atomic_bool ended;

static void *caller(void *data)
{
	struct thread *thread = data;

	set_privileged(thread, thread->state & 2);
	while (!atomic_load(&ended))
		call_something(thread);
	return NULL;
}

/* Removes and makes keys, and sockets, and writes where others read */
static void *disturber(void *data)
{
	struct thread *thread = data, *victim = thread + 1;
	struct registry registry;

	set_privileged(thread, true);
	open_registry(&registry);
	while (!atomic_load(&ended)) {
		struct key *key = &keys[below(thread, KEYS)];
		struct timespec pause = { 0, 1000 * below(thread, 2000) };

		switch (below(thread, 4)) {
		case 0:
			if (!remove_key(&registry, key) && make_key(&registry, key))
				wrong(thread, "key %u could not be made again", key->id);
			break;
		case 1:
			/* Descriptors stay, what is behind them goes */
			open_slot(&slots[below(thread, SLOTS)]);
			break;
		case 2:
			/* That one takes part no longer, until it is made again */
			if (one_in(thread, 8))
				shutdown(slots[below(thread, SLOTS)].fd, below(thread, 3));
			break;
		default:
			fill(thread, victim->memory + PAGES * victim->page - 512, 512);
		}
		nanosleep(&pause, NULL);
	}
	mnl_socket_close(registry.socket);
	return NULL;
}

static void run_threads(unsigned int count, unsigned int seconds)
{
	struct thread *threads = calloc(count + 1, sizeof(*threads));
	pthread_t *handles = calloc(count + 1, sizeof(*handles));
	unsigned int i;

	if (!threads || !handles)
		error(1, ENOMEM, "threads");
	for (i = 0; i <= count; i++)
		begin_thread(&threads[i], i + 2);
	threads[1].disturbed = true;
	for (i = 0; i <= count; i++) {
		int err = pthread_create(&handles[i], NULL, i ? caller : disturber, &threads[i]);

		if (err)
			error(1, err, "pthread_create");
	}
	while (seconds--)
		sleep(1);
	atomic_store(&ended, true);
	for (i = 0; i <= count; i++)
		pthread_join(handles[i], NULL);
}

static void remake_key(struct thread *thread, struct registry *registry)
{
	struct key *key = &keys[below(thread, KEYS)];
	unsigned int i;

	set_privileged(thread, true);
	if (remove_key(registry, key))
		wrong(thread, "key %u could not be removed", key->id);
	numbers[key->id] = NULL;
	for (i = 0; i < SLOTS; i++) {
		slots[i].mask &= ~(1ULL << key->id);
		prune(&slots[i].sticky);
	}
	if (make_key(registry, key))
		wrong(thread, "key %u could not be made again", key->id);
	numbers[key->id] = key;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "calls", required_argument, NULL, 'c' }, { "seconds", required_argument, NULL, 's' },
		{ "threads", required_argument, NULL, 't' }, { "seed", required_argument, NULL, 'e' }, {},
	};
	unsigned long calls = 20000, seconds = 5, threads = 4;
	struct thread thread = { .checked = true };
	struct ifreq interface = { .ifr_name = "lo" };
	struct registry registry;
	unsigned int i, j;
	int option, fd;
	FILE *range;

	seed = time(NULL);
	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		char *end = NULL;
		unsigned long long number = optarg ? strtoull(optarg, &end, 10) : 0;

		if (option == '?' || !end || *end || !*optarg)
			error(2, 0, "usage: traits-fuzz [--calls N] [--seconds N] [--threads N] [--seed N]");
		if (option == 'c')
			calls = number;
		else if (option == 's')
			seconds = number;
		else if (option == 't')
			threads = number;
		else
			seed = number;
	}
	printf("seed %llu\n", (unsigned long long)seed);
	fflush(stdout);

	open_registry(&registry);
	if (unshare(CLONE_NEWNET))
		error(1, errno, "unshare");
	fd = open_socket(AF_INET, SOCK_DGRAM, 0);
	interface.ifr_flags = IFF_UP;
	if (ioctl(fd, SIOCSIFFLAGS, &interface))
		error(1, errno, "the loopback interface");
	close(fd);
	range = fopen("/proc/sys/net/ipv4/ping_group_range", "w");
	if (!range || fputs("0 2147483647", range) < 0 || fclose(range))
		error(1, errno, "ping_group_range");

	for (i = 0; i < KEYS; i++) {
		int err = make_key(&registry, &keys[i]);

		if (err)
			error(1, err, "a key cannot be registered");
		numbers[keys[i].id] = &keys[i];
	}
	begin_thread(&thread, 1);
	set_privileged(&thread, true);
	for (i = 0; i < SLOTS; i++)
		open_slot(&slots[i]);
	for (; thread.call < calls;) {
		if (one_in(&thread, 64))
			remake_key(&thread, &registry);
		if (one_in(&thread, 16))
			set_privileged(&thread, one_in(&thread, 2));
		call_something(&thread);
	}

	set_privileged(&thread, true);
	if (seconds)
		run_threads(threads, seconds);

	for (i = 0; i < SLOTS; i++)
		close(slots[i].fd);
	for (i = 0; i < KEYS; i++)
		remove_key(&registry, &keys[i]);
	for (i = 0; i < CALLS; i++) {
		for (j = 0; j < ERRNOS; j++) {
			if (outcomes[i][j])
				printf("%s %u %lu\n", call_names[i], j, (unsigned long)outcomes[i][j]);
		}
	}
	printf("compared datagrams %lu\ncompared traits %lu\n", compared_datagrams, compared_traits);
	return 0;
}
