// SPDX-License-Identifier: MIT
/*
 * traits-fuzz [--calls N] [--seconds N] [--threads N] [--seed N] [--user UID]: calls setsockopt(),
 * getsockopt(), sendmsg() and recvmsg() (and their forms for many messages) with traits, with
 * lengths, addresses and contents of which some are right and some are not, on sockets of each kind.
 *
 * First one thread makes N calls. What each has to do is worked out beside it: an error
 * of its own, what an option holds afterwards, what a datagram carries when it arrives, and
 * that it does not arrive if its sendmsg() failed; of TCP, what a read delivers and where it
 * ends, and what is known of the SYN on the socket that is accepted. Half of these calls are made
 * without capabilities; then a process of another user makes a quarter as many more with the same
 * sockets, and one in a network namespace of that user's own. Then, for that many seconds, threads of
 * both users call on the same sockets while others remove and make keys, close and shut down sockets,
 * make and end connections and write to the buffers; there only the form of what comes back is
 * looked at, and the kernel has to hold. The first part is repeated by its seed (or
 * PACKET_TRAITS_SEED), which is printed, with the same number of calls.
 *
 * Prints a line "call errno count" for each outcome, errno 0 for success, and how many
 * datagrams, reads of streams and SYNs of the first part were compared with what was sent, and the
 * traits of these. Status 1 and a line that says what was expected if something is wrong.
 *
 * Makes a network namespace for itself. Needs the capabilities of root.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <error.h>
#include <fcntl.h>
#include <getopt.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/genetlink.h>
#include <linux/if_addr.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/net_tstamp.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/udp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <libmnl/libmnl.h>

#include "fuzz.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT	103
#endif

#define INTERFACE	"groups"
#define GROUP_IPV4	"239.255.42.60"
#define GROUP_IPV6	"ff05::4260"
/* Few datagrams, or most that are received would be too old to be remembered */
#define QUEUE		16384
#define NOBODY		65534
#define DATAGRAMS	4096
/* For experiments, RFC 3692: nobody's */
#define RAW_PROTOCOL	253

static const char *const call_names[CALLS] = {
	"setsockopt-recv", "setsockopt-send", "setsockopt-save", "setsockopt-other",
	"getsockopt-recv", "getsockopt-send", "getsockopt-save", "getsockopt-syn", "getsockopt-other",
	"sendmsg", "sendmmsg", "recvmsg", "recvmmsg", "connect",
};

struct shared *shared;
struct key keys[KEYS];
struct key *numbers[ALL_KEYS];
struct slot slots[SLOTS];

/* What the last datagrams were sent with, by their number modulo DATAGRAMS */
static struct {
	uint64_t number;
	bool refused;
	struct sent sent;
} datagrams[DATAGRAMS];

static uint64_t datagram_count;

static uint64_t seed;
static unsigned long calls = 20000;

void wrong(const struct thread *thread, const char *format, ...)
{
	va_list arguments;

	flockfile(stdout);
	printf("wrong: seed %llu, call %lu of %lu%s%s: ", (unsigned long long)seed, thread->call, calls,
	       thread->checked ? "" : ", of a thread", thread->owner ? ", as the owner of a network namespace" :
	       thread->foreign ? ", as another user" : thread->privileged ? "" : ", without capabilities");
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	putchar('\n');
	fflush(stdout);
	/* Who waits for threads need not wait any longer */
	atomic_store(&shared->ended, true);
	_exit(1);
}

/* xorshift64*, of Vigna: small, and the same everywhere */
uint64_t any(struct thread *thread)
{
	thread->state ^= thread->state >> 12;
	thread->state ^= thread->state << 25;
	thread->state ^= thread->state >> 27;
	return thread->state * 0x2545f4914f6cdd1dULL;
}

unsigned int below(struct thread *thread, unsigned int bound)
{
	return (any(thread) >> 32) % bound;
}

bool one_in(struct thread *thread, unsigned int bound)
{
	return !below(thread, bound);
}

/* ---- registry and interfaces ---- */

struct netlink {
	struct mnl_socket *socket;
	uint16_t family;
	char buffer[8192];
};

/* Owns the keys. Used by one thread at a time: the disturber while the first one waits. */
static struct netlink registry;

static struct nlmsghdr *request(struct netlink *netlink, uint16_t family, uint8_t command)
{
	struct nlmsghdr *message = mnl_nlmsg_put_header(netlink->buffer);
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
static int exchange(struct netlink *netlink, struct nlmsghdr *message, unsigned int type,
		    unsigned int *value)
{
	char reply[8192];
	ssize_t length;

	if (mnl_socket_sendto(netlink->socket, message, message->nlmsg_len) < 0)
		return errno;
	for (;;) {
		struct nlmsghdr *header = (struct nlmsghdr *)reply;
		int left;

		length = mnl_socket_recvfrom(netlink->socket, reply, sizeof(reply));
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

static void open_netlink(struct netlink *netlink, int bus)
{
	netlink->socket = mnl_socket_open(bus);
	if (!netlink->socket || mnl_socket_bind(netlink->socket, 0, MNL_SOCKET_AUTOPID) < 0)
		error(1, errno, "netlink");
}

static void add_address(struct netlink *netlink, unsigned int index, int family, const char *text, unsigned int prefix)
{
	struct nlmsghdr *message = mnl_nlmsg_put_header(netlink->buffer);
	struct ifaddrmsg *header;
	uint8_t address[16];
	size_t len = family == AF_INET ? 4 : 16;
	int err;

	inet_pton(family, text, address);
	message->nlmsg_type = RTM_NEWADDR;
	message->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE;
	header = mnl_nlmsg_put_extra_header(message, sizeof(*header));
	header->ifa_family = family;
	header->ifa_prefixlen = prefix;
	header->ifa_flags = IFA_F_NODAD;
	header->ifa_index = index;
	mnl_attr_put(message, IFA_LOCAL, len, address);
	mnl_attr_put(message, IFA_ADDRESS, len, address);
	err = exchange(netlink, message, 0, NULL);
	if (err)
		error(1, err, "the address %s", text);
}

/* The loopback interface is no place for groups. Returns the number of one that is. */
static unsigned int make_interface(void)
{
	struct netlink routes, *netlink = &routes;
	struct nlmsghdr *message;
	struct ifinfomsg *header;
	struct nlattr *info;
	unsigned int index;
	int err;

	open_netlink(netlink, NETLINK_ROUTE);
	message = mnl_nlmsg_put_header(netlink->buffer);
	message->nlmsg_type = RTM_NEWLINK;
	message->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
	header = mnl_nlmsg_put_extra_header(message, sizeof(*header));
	header->ifi_flags = header->ifi_change = IFF_UP;
	mnl_attr_put_strz(message, IFLA_IFNAME, INTERFACE);
	/* Nothing is sent in fragments: to put those together ends traits */
	mnl_attr_put_u32(message, IFLA_MTU, UINT16_MAX);
	info = mnl_attr_nest_start(message, IFLA_LINKINFO);
	mnl_attr_put_strz(message, IFLA_INFO_KIND, "dummy");
	mnl_attr_nest_end(message, info);
	err = exchange(netlink, message, 0, NULL);
	if (err)
		error(1, err, "an interface of the kind dummy");
	index = if_nametoindex(INTERFACE);
	add_address(netlink, index, AF_INET, "10.42.60.1", 24);
	add_address(netlink, index, AF_INET6, "fd42:60::1", 64);
	mnl_socket_close(netlink->socket);
	return index;
}

static void open_registry(void)
{
	struct nlmsghdr *message;
	unsigned int family = 0;

	open_netlink(&registry, NETLINK_GENERIC);
	message = request(&registry, GENL_ID_CTRL, CTRL_CMD_GETFAMILY);
	mnl_attr_put_strz(message, CTRL_ATTR_FAMILY_NAME, TRAITS_FAMILY_NAME);
	if (exchange(&registry, message, CTRL_ATTR_FAMILY_ID, &family) || !family)
		error(1, 0, "this kernel has no packet traits");
	registry.family = family;
}

/* Makes a key, most of another size than before; it may get another number. It ends with the socket,
 * so that nothing is left of it however this ends.
 */
static int make_key(struct key *key)
{
	static const unsigned int sizes[] = { 4, 8, 16 };
	struct nlmsghdr *message = request(&registry, registry.family, TRAITS_CMD_KEY_NEW);
	unsigned int index = key - keys, id = ALL_KEYS;
	char name[32];
	int err;

	snprintf(name, sizeof(name), "fuzz.%u.%u", (unsigned int)getpid(), index);
	key->size = index < CHANGING ? sizes[(index + key->made) % 3] : 16;
	/* Four merge as numbers, where they are such */
	key->merge = index >= 8 && index < CHANGING && key->size < 16 ? TRAITS_MERGE_MIN + index - 8 : index % (TRAITS_MERGE_LAST + 1);
	key->flags = (index < CHANGING ? index : index - 6) / 3 | (index % 2 ? TRAITS_KEY_FLAGS_CROSS_NETNS : 0);
	mnl_attr_put_strz(message, TRAITS_A_KEY_NAME, name);
	mnl_attr_put_u32(message, TRAITS_A_KEY_SIZE, key->size);
	mnl_attr_put_u32(message, TRAITS_A_KEY_FLAGS, key->flags | TRAITS_KEY_FLAGS_OWNED);
	mnl_attr_put_u32(message, TRAITS_A_KEY_MERGE, key->merge);
	/* Under the number that it had: what has it on record must not take it for the same */
	if (key->made)
		mnl_attr_put_u32(message, TRAITS_A_KEY_ID, key->id);
	err = exchange(&registry, message, TRAITS_A_KEY_ID, &id);
	if (err)
		return err;
	if (id >= ALL_KEYS)
		error(1, 0, "the kernel gave key %s no number", name);
	key->id = id;
	key->made++;
	return 0;
}

static int remove_key(const struct key *key)
{
	struct nlmsghdr *message = request(&registry, registry.family, TRAITS_CMD_KEY_DEL);

	mnl_attr_put_u32(message, TRAITS_A_KEY_ID, key->id);
	return exchange(&registry, message, 0, NULL);
}

/* ---- what has to come of a call ---- */

const struct key *key_of(unsigned int id, unsigned int made)
{
	const struct key *key = id < ALL_KEYS ? numbers[id] : NULL;

	return key && (!made || key->made == made) ? key : NULL;
}

/* Without those whose keys are gone */
void prune(struct sent *sent)
{
	unsigned int i, left = 0;

	for (i = 0; i < sent->count; i++) {
		if (key_of(sent->traits[i].id, sent->traits[i].made))
			sent->traits[left++] = sent->traits[i];
	}
	sent->count = left;
}

void put_trait(struct sent *sent, const struct trait *record)
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
	if (numbers[id]->flags & flag || thread->privileged)
		return true;
	return thread->owner && !(numbers[id]->flags & TRAITS_KEY_FLAGS_CROSS_NETNS);
}

static bool receives(enum kind kind)
{
	return kind <= PACKET || is_tcp(kind);
}

static bool sends(enum kind kind)
{
	return kind < PACKET || is_tcp(kind);
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
int judge_send(const struct thread *thread, const struct slot *slot, const struct trait *records,
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

/* The traits of the datagram that @slot has under way, or NULL if they are not known any more */
static struct sent *sent_of_cork(struct slot *slot)
{
	if (datagrams[slot->cork % DATAGRAMS].number != slot->cork)
		return NULL;
	prune(&datagrams[slot->cork % DATAGRAMS].sent);
	return &datagrams[slot->cork % DATAGRAMS].sent;
}

/* Are all of these among them? */
static bool is_of_cork(struct slot *slot, const struct trait *records, size_t len)
{
	const struct sent *sent = sent_of_cork(slot);
	unsigned int i, j;

	for (i = 0; i < len / sizeof(*records); i++) {
		for (j = 0; j < sent->count; j++) {
			if (sent->traits[j].id == records[i].key && sent->traits[j].size == records[i].len &&
			    !memcmp(sent->traits[j].value, records[i].value, 16))
				break;
		}
		if (j == sent->count)
			return false;
	}
	return true;
}

/* All of them as records; returns the number of bytes */
static size_t records_of_cork(struct slot *slot, struct trait *records)
{
	const struct sent *sent = sent_of_cork(slot);
	unsigned int i, count = sent ? sent->count : 0;

	memset(records, 0, count * sizeof(*records));
	for (i = 0; i < count; i++) {
		records[i].key = sent->traits[i].id;
		records[i].len = sent->traits[i].size;
		memcpy(records[i].value, sent->traits[i].value, 16);
	}
	return count * sizeof(*records);
}

/* ---- memory ---- */

/* Where nothing is */
void *bad_address(struct thread *thread)
{
	void *const addresses[] = { NULL, (void *)8, (void *)0xffff888000000000UL, (void *)0x8000000000000000UL,
				    thread->memory + PAGES * thread->page };

	return addresses[below(thread, 5)];
}

/* A place for @len bytes that are read, or @written. How many of them can be goes to @good */
static uint8_t *place(struct thread *thread, size_t len, size_t *good, bool hostile, bool written)
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
	switch (below(thread, written ? 4 : 3)) {
	case 0:
	case 1:
		return bad_address(thread);
	case 3:
		return thread->readable + below(thread, 64);
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

void note(struct thread *thread, enum call call, int err)
{
	if (err < 0 || err >= ERRNOS)
		wrong(thread, "%s: errno %d", call_names[call], err);
	atomic_fetch_add_explicit(&shared->outcomes[call][err], 1, memory_order_relaxed);
}

void fill(struct thread *thread, uint8_t *bytes, unsigned int count)
{
	while (count--)
		bytes[count] = any(thread) >> 32;
}

/* Records of which most are right; returns the number of bytes */
size_t make_records(struct thread *thread, struct trait *records)
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
	uint8_t *at = place(thread, len, &good, true, false);
	struct sent sent;
	int optlen = len, err, expected;

	if (good)
		memcpy(at, records, good < len ? good : len);
	if (one_in(thread, 10))
		optlen += (int)below(thread, 49) - 24;
	else if (one_in(thread, 40))
		optlen = any(thread) >> 32;

	if (is_stream(slot->kind) && thread->checked)
		stream_sends_other(slot);
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

uint64_t make_mask(struct thread *thread)
{
	bool open = one_in(thread, 2);
	uint64_t mask = 0;
	unsigned int i;

	for (i = 0; i < KEYS; i++) {
		if (one_in(thread, 2) && !(open && !(keys[i].flags & TRAITS_KEY_FLAGS_OPEN_READ)))
			mask |= 1ULL << keys[i].id;
	}
	return mask;
}

static void set_mask(struct thread *thread, struct slot *slot, bool save)
{
	uint64_t mask = make_mask(thread);
	unsigned int i, optlen = sizeof(mask);
	int err, expected = 0;
	size_t good;
	uint8_t *at;

	if (one_in(thread, 10))
		mask |= 1ULL << below(thread, ALL_KEYS);
	if (one_in(thread, 20))
		mask = any(thread);
	at = place(thread, sizeof(mask), &good, true, false);
	if (good)
		memcpy(at, &mask, good);
	if (one_in(thread, 10))
		optlen = one_in(thread, 2) ? below(thread, 20) : any(thread) >> 32;

	err = setsockopt(slot->fd, SOL_TRAITS, save ? TRAITS_SAVE_SYN : TRAITS_RECV, at, optlen) ? errno : 0;
	note(thread, save ? SET_SAVE : SET_RECV, err);
	if (!thread->checked)
		return;

	if ((int)optlen < 0)
		expected = EINVAL;
	else if (!(save ? is_tcp(slot->kind) : receives(slot->kind)))
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
		wrong(thread, "%s, %u bytes, mask %#llx, kind %d: errno %d, expected %d",
		      save ? "TRAITS_SAVE_SYN" : "TRAITS_RECV", optlen, (unsigned long long)mask, slot->kind, err,
		      expected);
	if (err)
		return;
	if (save) {
		slot->save = mask;
	} else {
		if (!slot->mask)
			slot->silent = datagram_count + 1;
		if (is_stream(slot->kind))
			stream_asks_other(slot);
		slot->mask = mask;
	}
}

static int order(const void *one, const void *other)
{
	return (int)((const struct trait *)one)->key - (int)((const struct trait *)other)->key;
}

static void get(struct thread *thread, struct slot *slot, int name)
{
	static const char *const names[] = {
		[TRAITS_RECV] = "TRAITS_RECV", [TRAITS_SEND] = "TRAITS_SEND", [TRAITS_SAVE_SYN] = "TRAITS_SAVE_SYN",
		[TRAITS_SYN] = "TRAITS_SYN",
	};
	static const enum call gets[] = {
		[TRAITS_RECV] = GET_RECV, [TRAITS_SEND] = GET_SEND, [TRAITS_SAVE_SYN] = GET_SAVE, [TRAITS_SYN] = GET_SYN,
	};
	const struct sent *sent = name == TRAITS_SEND ? &slot->sticky : name == TRAITS_SYN ? &slot->syn : NULL;
	struct trait records[RECORDS] = {};
	unsigned int i, count = 0;
	uint8_t before[2 * sizeof(records)];
	const void *value = name == TRAITS_RECV ? &slot->mask : &slot->save;
	int room, optlen, err, expected = 0, needed = sizeof(slot->mask);
	socklen_t *len_at = (socklen_t *)&optlen;
	bool has = name == TRAITS_RECV ? receives(slot->kind) : name == TRAITS_SEND ? sends(slot->kind) :
		   is_tcp(slot->kind);
	bool readable = true, writable = true;
	size_t good;
	uint8_t *at;

	if (sent) {
		for (i = 0; i < sent->count; i++) {
			/* What was kept of a SYN is for whoever has the socket */
			if (thread->checked && name == TRAITS_SEND &&
			    !may(thread, sent->traits[i].id, TRAITS_KEY_FLAGS_OPEN_READ))
				continue;
			records[count].key = sent->traits[i].id;
			records[count].len = sent->traits[i].size;
			memcpy(records[count++].value, sent->traits[i].value, 16);
		}
		qsort(records, count, sizeof(*records), order);
		value = records;
		needed = count * sizeof(*records);
	}
	room = one_in(thread, 4) ? (int)below(thread, needed + 40) : needed + (int)below(thread, 8);
	at = place(thread, room, &good, true, true);
	if (good)
		memset(at, 0xee, good);
	optlen = one_in(thread, 50) ? -(int)below(thread, 1000) - 1 : room;
	room = optlen;
	if (one_in(thread, 40)) {
		len_at = (socklen_t *)bad_address(thread);
		readable = writable = false;
	} else if (one_in(thread, 40)) {
		len_at = (socklen_t *)(thread->readable + below(thread, 64));
		memcpy(&room, len_at, sizeof(room));
		writable = false;
	}

	err = getsockopt(slot->fd, SOL_TRAITS, name, at, len_at) ? errno : 0;
	note(thread, gets[name], err);
	if (!thread->checked)
		return;

	if (!has)
		expected = EOPNOTSUPP;
	else if (!readable)
		expected = EFAULT;
	else if (room < 0)
		expected = EINVAL;
	else if (!writable)
		expected = EFAULT;
	else if (room && room < needed)
		expected = EINVAL;
	else if (room && good < (size_t)needed)
		expected = EFAULT;
	if (err != expected)
		wrong(thread, "getsockopt of %s, %d bytes of room for %d, %zu good, kind %d: errno %d, expected %d",
		      names[name], room, needed, good, slot->kind, err, expected);
	if (expected != EOPNOTSUPP && writable && room >= 0 && optlen != needed)
		wrong(thread, "getsockopt of %s said %d bytes, expected %d, kind %d", names[name], optlen, needed,
		      slot->kind);
	if (!good || err == EFAULT)
		return;
	memset(before, 0xee, sizeof(before));
	if (!err && room)
		memcpy(before, value, needed);
	for (i = 0; i < good && i < sizeof(before); i++) {
		if (at[i] != before[i])
			wrong(thread, "getsockopt of %s wrote %#x at %u, expected %#x, kind %d", names[name], at[i], i,
			      before[i], slot->kind);
	}
}

/* Names of options that there are none of */
static void other_option(struct thread *thread, struct slot *slot, bool set)
{
	static const int names[] = { 0, TRAITS_SYN, 5, -1, INT32_MIN, INT32_MAX };
	uint8_t value[64] = {}, before[64] = {};
	int name = names[below(thread, 6)], err, expected = receives(slot->kind) ? ENOPROTOOPT : EOPNOTSUPP;
	socklen_t len = below(thread, sizeof(value));

	/* That can be read, and nothing else */
	if (name == TRAITS_SYN && !set)
		name++;
	else if (name == TRAITS_SYN && !is_tcp(slot->kind))
		expected = EOPNOTSUPP;
	if (set)
		err = setsockopt(slot->fd, SOL_TRAITS, name, value, len) ? errno : 0;
	else
		err = getsockopt(slot->fd, SOL_TRAITS, name, value, &len) ? errno : 0;
	note(thread, set ? SET_OTHER : GET_OTHER, err);
	if (thread->checked && (err != expected || memcmp(value, before, sizeof(value))))
		wrong(thread, "option %d, kind %d: errno %d, expected %d, and nothing written", name, slot->kind, err,
		      expected);
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

/* The bytes of a datagram: its number over and over. @place tells those of a batch apart. */
static uint8_t *payload_of(struct thread *thread, uint64_t number, size_t len, unsigned int place)
{
	uint8_t *at = thread->memory + place * LARGEST_OF_BATCH;
	size_t i;

	for (i = 0; i + 8 <= len; i += 8)
		memcpy(at + i, &number, 8);
	memset(at + i, 0, len - i);
	return at;
}

/* Whoever sends with a header of its own has to say something that is one */
static void put_ip_header(enum kind kind, uint8_t *at, size_t len)
{
	if (kind == HEADER4 && len >= sizeof(struct iphdr)) {
		struct iphdr header = { .version = 4, .ihl = 5, .tot_len = htons(len), .ttl = 64,
					.protocol = RAW_PROTOCOL, .daddr = htonl(INADDR_LOOPBACK) };

		memcpy(at, &header, sizeof(header));
	} else if (kind == HEADER6 && len >= sizeof(struct ip6_hdr)) {
		struct ip6_hdr header = { .ip6_src = in6addr_loopback, .ip6_dst = in6addr_loopback };

		header.ip6_vfc = 0x60;
		header.ip6_plen = htons(len - sizeof(header));
		header.ip6_nxt = RAW_PROTOCOL;
		header.ip6_hlim = 64;
		memcpy(at, &header, sizeof(header));
	}
}

static void make_message(struct thread *thread, struct slot *slot, struct message *message, int place_in_batch,
			 size_t before)
{
	size_t len = 0, good, payload = 8 * (1 + below(thread, 12));
	bool many = place_in_batch >= 0;
	uint16_t segment = 8;
	int tos = 4 * below(thread, 40);
	uint8_t *at;

	memset(message, 0, offsetof(struct message, control));
	message->certain = true;
	message->plain = slot->kind <= UDPLITE6 || is_stream(slot->kind);
	message->number = thread->checked ? datagram_count + 1 + (many ? place_in_batch : 0) : 0;

	if (one_in(thread, 8)) {
		len = put_control(message->control, len, IPPROTO_IP, IP_TOS, &tos, sizeof(tos),
				  CMSG_LEN(sizeof(tos)));
		message->plain = false;
	}
	if (!one_in(thread, 5)) {
		/* Over and over the same, or no two could ever be read at once */
		if (is_stream(slot->kind) && one_in(thread, 3))
			message->len = 0;
		else if (is_stream(slot->kind) && !one_in(thread, 3))
			message->len = stream_records(thread, slot, message->records);
		else if (slot->corked && one_in(thread, 2))
			message->len = records_of_cork(slot, message->records);
		else
			message->len = make_records(thread, message->records);
		len = put_control(message->control, len, SOL_TRAITS, SCM_TRAITS, message->records, message->len,
				  CMSG_LEN(message->len));
	}
	if (one_in(thread, 12) && !is_stream(slot->kind)) {
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
		payload = one_in(thread, 2) ? 0 : many ? LARGEST_OF_BATCH : 8 * below(thread, 9000);
		message->plain = false;
	}

	message->vector.iov_base = payload_of(thread, slot->corked ? slot->cork : message->number, payload,
					      many ? place_in_batch : 0);
	message->vector.iov_len = payload;
	/* What of a batch is before it is not known to be sent, but nothing of this one is if it is not */
	if (is_stream(slot->kind) && thread->checked)
		stream_fill(slot, message->vector.iov_base, before, payload);
	/* Or else ICMP sockets take next to none */
	if (payload && (slot->kind == PING4 || slot->kind == PING6))
		memcpy(message->vector.iov_base, slot->kind == PING4 ? "\x08" : "\x80", 2);
	put_ip_header(slot->kind, message->vector.iov_base, payload);
	message->header.msg_iov = &message->vector;
	message->header.msg_iovlen = 1;
	message->header.msg_name = &slot->to;
	message->header.msg_namelen = slot->to_len;
	if (!slot->to_len)
		message->header.msg_name = NULL;
	if (one_in(thread, 80)) {
		/* What goes wrong behind the traits sends nothing either */
		switch (below(thread, 4)) {
		case 0:
			message->vector.iov_base = bad_address(thread);
			break;
		case 1:
			message->header.msg_iov = bad_address(thread);
			break;
		case 2:
			message->header.msg_name = bad_address(thread);
			break;
		default:
			message->header.msg_iovlen = one_in(thread, 2) ? 1025 : SIZE_MAX;
		}
		message->plain = false;
	}
	if (len || one_in(thread, 2)) {
		/* Copied away from the payload, which lies at the beginning */
		at = place(thread, len, &good, !many && one_in(thread, 3), false);
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

/* What a plain message has to come to */
static int judge_message(struct thread *thread, struct slot *slot, const struct message *message)
{
	struct sent together = slot->sticky;
	unsigned int i;
	int err = judge_form(message->records, message->len);

	if (!err)
		err = judge_rights(thread, message->records, message->len);
	if (err || !message->len)
		return err;
	if (slot->corked)
		return is_of_cork(slot, message->records, message->len) ? 0 : EINVAL;
	for (i = 0; i < message->len / sizeof(struct trait); i++)
		put_trait(&together, &message->records[i]);
	return size_of(&together) > STORE ? ENOSPC : 0;
}

/* An error of an earlier datagram may be told now, or a queue be full */
static bool is_of_others(int err)
{
	return err == ECONNREFUSED || err == EAGAIN || err == ENOBUFS;
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
		slot->odd = !message->plain || !message->certain;
	}
	slot->corked = !err && !whole;
}

/* Sends what is under way, if there is something, and holds back what follows if @hold */
static void set_cork(struct thread *thread, struct slot *slot, int hold)
{
	if (setsockopt(slot->fd, IPPROTO_UDP, UDP_CORK, &hold, sizeof(hold)) && thread->checked)
		wrong(thread, "UDP_CORK, kind %d: errno %d", slot->kind, errno);
	slot->held = hold;
	if (!hold)
		slot->corked = false;
}

static void send_one(struct thread *thread, struct slot *slot)
{
	struct message message;
	int flags = MSG_DONTWAIT | MSG_NOSIGNAL, err, expected;
	ssize_t length;

	if (is_stream(slot->kind) && thread->checked && stream_is_full(slot))
		return;
	make_message(thread, slot, &message, -1, 0);
	if (one_in(thread, 8) && (slot->kind <= RAW6 || is_tcp(slot->kind)))
		flags |= MSG_MORE;

	length = sendmsg(slot->fd, &message.header, flags);
	err = length < 0 ? errno : 0;
	note(thread, SEND, err);
	if (!thread->checked)
		return;

	/* Many pieces may be too long together */
	if (message.plain && !(slot->corked && (slot->odd || !sent_of_cork(slot) || err == EMSGSIZE))) {
		expected = judge_message(thread, slot, &message);
		if (err != expected && !is_of_others(err))
			wrong(thread, "sendmsg, %zu bytes of records, kind %d%s: errno %d, expected %d", message.len,
			      slot->kind, slot->corked ? ", more of a datagram" : "", err, expected);
	}
	if (is_stream(slot->kind) && length > 0)
		stream_wrote(slot, &message, length);
	if (slot->kind <= UDPLITE6) {
		if (slot->corked && err) {
			/* One that cannot be added takes the others with it, or leaves them: what
			 * else it has is not known then
			 */
			set_cork(thread, slot, 0);
			datagrams[slot->cork % DATAGRAMS].number = 0;
		}
		remember(slot, &message, err, !(flags & MSG_MORE) && !slot->held);
	}
}

static void send_many(struct thread *thread, struct slot *slot)
{
	static __thread struct message messages[BATCH];
	struct mmsghdr headers[BATCH];
	size_t before = 0;
	int i, sent, err;

	if (thread->checked && (slot->corked || slot->held || (is_stream(slot->kind) && stream_is_full(slot))))
		return;
	for (i = 0; i < BATCH; i++) {
		make_message(thread, slot, &messages[i], i, before);
		headers[i].msg_hdr = messages[i].header;
		before += messages[i].vector.iov_len;
	}
	sent = sendmmsg(slot->fd, headers, BATCH, MSG_DONTWAIT | MSG_NOSIGNAL);
	err = sent < 0 ? errno : 0;
	note(thread, SEND_MANY, err);
	if (!thread->checked || (slot->kind > UDPLITE6 && !is_stream(slot->kind)))
		return;
	if (sent < 0)
		sent = 0;
	/* It stops at the first that is not sent, and tells why if that is the first of all */
	for (i = 0; i < BATCH; i++) {
		int expected = messages[i].plain ? judge_message(thread, slot, &messages[i]) : 0;

		if (messages[i].plain &&
		    ((i < sent && expected) || (!i && err && err != expected && !is_of_others(err))))
			wrong(thread, "sendmmsg sent %d, errno %d; of %d errno %d was expected, kind %d", sent, err, i,
			      expected, slot->kind);
		if (!is_stream(slot->kind))
			remember(slot, &messages[i], i >= sent, true);
		else if (i < sent && headers[i].msg_len)
			stream_wrote(slot, &messages[i], headers[i].msg_len);
	}
}

/* Control data that the kernel gave has to be in form */
void read_control(struct thread *thread, const struct slot *slot, const struct msghdr *header,
		  struct control *control)
{
	static const uint8_t zero[16];
	const uint8_t *bytes = header->msg_control;
	size_t at = 0;
	unsigned int i;

	control->count = 0;
	control->others = false;
	while (at + sizeof(struct cmsghdr) <= header->msg_controllen) {
		struct cmsghdr message;
		size_t len;
		int last = -1;

		memcpy(&message, bytes + at, sizeof(message));
		if (control->count)
			wrong(thread, "recvmsg: level %d, type %d behind the traits", message.cmsg_level,
			      message.cmsg_type);
		if (message.cmsg_len < sizeof(message) || message.cmsg_len > header->msg_controllen - at)
			wrong(thread, "recvmsg: a control message of %zu bytes, with %zu left",
			      (size_t)message.cmsg_len, (size_t)header->msg_controllen - at);
		len = message.cmsg_len - CMSG_LEN(0);
		if (message.cmsg_level == SOL_TRAITS) {
			if (message.cmsg_type != SCM_TRAITS || !len || len % sizeof(struct trait) ||
			    len > sizeof(control->records))
				wrong(thread, "recvmsg: message type %d of %zu bytes", message.cmsg_type, len);
			control->count = len / sizeof(struct trait);
			memcpy(control->records, bytes + at + CMSG_LEN(0), len);
		} else {
			control->others = true;
		}
		for (i = 0; i < control->count; i++) {
			const struct trait *record = &control->records[i];

			if (record->key >= ALL_KEYS || (int)record->key <= last || record->flags ||
			    (record->len != 4 && record->len != 8 && record->len != 16) ||
			    memcmp(record->value + record->len, zero, 16 - record->len))
				wrong(thread, "recvmsg: record %u: key %u, length %u, flags %u", i, record->key,
				      record->len, record->flags);
			last = record->key;
			if (thread->checked && !(slot->mask >> record->key & 1))
				wrong(thread, "recvmsg: key %u was not asked for", record->key);
		}
		at += CMSG_ALIGN(message.cmsg_len);
	}
}

/* What was received, of @len bytes and with @room for control data, against what was sent */
static void look_at(struct thread *thread, struct slot *slot, const struct msghdr *header, size_t len, size_t room)
{
	const uint8_t *payload = header->msg_iov->iov_base;
	struct control control;
	const struct sent *sent;
	unsigned int i, right = 0;
	uint64_t number = 0, word;
	size_t at;

	read_control(thread, slot, header, &control);
	if (slot->kind > UDPLITE6 || len < 8 || header->msg_flags & MSG_ERRQUEUE)
		return;

	memcpy(&number, payload, 8);
	for (at = 8; at + 8 <= len; at += 8) {
		memcpy(&word, payload + at, 8);
		if (word != number)
			wrong(thread, "datagram %llu has other bytes at %zu: %#llx", (unsigned long long)number, at,
			      (unsigned long long)word);
	}
	if (!thread->checked || !number || datagrams[number % DATAGRAMS].number != number)
		return;
	if (datagrams[number % DATAGRAMS].refused)
		wrong(thread, "datagram %llu arrived, whose sendmsg failed", (unsigned long long)number);
	if (!control.count && number <= slot->silent)
		return;
	prune(&datagrams[number % DATAGRAMS].sent);
	sent = &datagrams[number % DATAGRAMS].sent;
	for (i = 0; i < sent->count; i++)
		right += slot->mask >> sent->traits[i].id & 1;
	if (!control.count && right && header->msg_flags & MSG_CTRUNC &&
	    (slot->talks || room < CMSG_LEN(right * sizeof(struct trait))))
		return;
	if (header->msg_flags & MSG_CTRUNC && !slot->talks)
		wrong(thread, "datagram %llu: MSG_CTRUNC, for %u traits, expected %u, in %zu bytes",
		      (unsigned long long)number, control.count, right, room);
	for (i = 0; i < sent->count; i++) {
		unsigned int id = sent->traits[i].id, j;

		if (!(slot->mask >> id & 1))
			continue;
		for (j = 0; j < control.count && control.records[j].key != id; j++)
			;
		if (j == control.count || control.records[j].len != sent->traits[i].size ||
		    memcmp(control.records[j].value, sent->traits[i].value, 16))
			wrong(thread, "datagram %llu arrived at kind %d with %s of key %u, %u traits, expected %u; %zu bytes, flags %#x",
			      (unsigned long long)number, slot->kind, j == control.count ? "no value" : "another value",
			      id, control.count, right, len, header->msg_flags);
	}
	if (right != control.count)
		wrong(thread, "datagram %llu arrived with %u traits, expected %u", (unsigned long long)number,
		      control.count, right);
	atomic_fetch_add(&shared->compared_datagrams, 1);
	atomic_fetch_add(&shared->compared_traits, control.count);
}

static int receive_flags(struct thread *thread)
{
	int flags = MSG_DONTWAIT;

	if (one_in(thread, 8))
		flags |= MSG_PEEK;
	if (one_in(thread, 8))
		flags |= MSG_TRUNC;
	if (one_in(thread, 6))
		flags |= MSG_ERRQUEUE;
	return flags;
}

static void receive_one(struct thread *thread, struct slot *slot)
{
	struct sockaddr_storage from;
	uint8_t payload[2048];
	struct iovec vector = { payload, one_in(thread, 8) ? below(thread, 64) : sizeof(payload) };
	struct msghdr header = { .msg_name = &from, .msg_namelen = sizeof(from), .msg_iov = &vector, .msg_iovlen = 1 };
	size_t room = one_in(thread, 3) ? below(thread, 400) : 2048, claim, good;
	uint8_t *at = place(thread, room, &good, true, true);
	bool stream = is_stream(slot->kind) && thread->checked, known;
	size_t i, waiting = stream ? stream_waiting(slot) : 0;
	int err, flags = receive_flags(thread);
	ssize_t length;

	if (good)
		memset(at, 0xee, good);
	header.msg_control = at;
	header.msg_controllen = claim = one_in(thread, 100) ? any(thread) : room;
	if (one_in(thread, 60))
		vector.iov_base = bad_address(thread);
	if (one_in(thread, 60))
		header.msg_name = bad_address(thread);
	length = recvmsg(slot->fd, &header, flags);
	err = length < 0 ? errno : 0;
	note(thread, RECEIVE, err);
	/* Where the kernel could not write, nothing can be read */
	known = good == room && claim == room && !thread->disturbed;
	if (stream && !err)
		stream_read(thread, slot, &header, length, vector.iov_len, waiting, room, flags, known);
	if (err || !known)
		return;
	for (i = header.msg_controllen; i < room; i++) {
		if (at[i] != 0xee)
			wrong(thread, "recvmsg wrote %#x at %zu, behind %zu bytes of control data", at[i], i,
			      (size_t)header.msg_controllen);
	}
	if (!stream)
		look_at(thread, slot, &header, length < (ssize_t)vector.iov_len ? (size_t)length : vector.iov_len, room);
}

static void receive_many(struct thread *thread, struct slot *slot)
{
	static __thread uint8_t payloads[BATCH][256], controls[BATCH][2048];
	size_t rooms[BATCH];
	struct iovec vectors[BATCH];
	struct mmsghdr headers[BATCH] = {};
	int i, count, flags = receive_flags(thread);
	bool stream = is_stream(slot->kind) && thread->checked;
	size_t waiting = stream ? stream_waiting(slot) : 0;

	for (i = 0; i < BATCH; i++) {
		vectors[i] = (struct iovec){ payloads[i], sizeof(payloads[i]) };
		headers[i].msg_hdr.msg_iov = &vectors[i];
		headers[i].msg_hdr.msg_iovlen = 1;
		headers[i].msg_hdr.msg_control = controls[i];
		headers[i].msg_hdr.msg_controllen = rooms[i] =
			one_in(thread, 4) ? below(thread, 300) : sizeof(controls[i]);
	}
	count = recvmmsg(slot->fd, headers, BATCH, flags, NULL);
	note(thread, RECEIVE_MANY, count < 0 ? errno : 0);
	for (i = 0; i < count; i++) {
		if (stream) {
			stream_read(thread, slot, &headers[i].msg_hdr, headers[i].msg_len, sizeof(payloads[i]), waiting,
				    rooms[i], flags, true);
			if (!(flags & (MSG_PEEK | MSG_ERRQUEUE)))
				waiting -= headers[i].msg_len < waiting ? headers[i].msg_len : waiting;
			continue;
		}
		look_at(thread, slot, &headers[i].msg_hdr,
			headers[i].msg_len < sizeof(payloads[i]) ? headers[i].msg_len : sizeof(payloads[i]), rooms[i]);
	}
}

static void call_something(struct thread *thread)
{
	/* Mostly those that do both, and those of TCP half as often */
	unsigned int which = below(thread, 8);
	struct slot *slot = &slots[which < 2 ? below(thread, SLOTS) : which < 5 ? below(thread, 2 * PACKET) :
				   2 * STREAM4 + below(thread, 2 * (IDLE - STREAM4 + 1))];

	thread->call++;
	switch (below(thread, 19)) {
	case 0:
		if (one_in(thread, 8))
			other_option(thread, slot, one_in(thread, 2));
		else if (one_in(thread, is_tcp(slot->kind) ? 2 : 10))
			set_mask(thread, slot, true);
		else
			set_mask(thread, slot, false);
		break;
	case 16:
		if (slot->kind <= UDPLITE6)
			set_cork(thread, slot, one_in(thread, 3));
		break;
	case 1:
	case 2:
		set_send(thread, slot);
		break;
	case 3:
		get(thread, slot, one_in(thread, is_tcp(slot->kind) ? 2 : 10) ? TRAITS_SAVE_SYN : TRAITS_RECV);
		break;
	case 4:
		get(thread, slot, one_in(thread, is_stream(slot->kind) ? 2 : 12) ? TRAITS_SYN : TRAITS_SEND);
		break;
	case 17:
		if (is_tcp(slot->kind) && !thread->checked)
			stream_call(thread, slot);
		else if (is_stream(slot->kind) && thread->checked && one_in(thread, 4))
			stream_connect(thread, slot->kind);
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

void address(struct slot *slot, int family, const char *host, int port)
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

int open_socket(int family, int type, int protocol)
{
	int fd = socket(family, type | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol);

	if (fd < 0)
		error(1, errno, "socket(%d, %d, %d)", family, type, protocol);
	return fd;
}

void set_option(int fd, int level, int name, const void *value, socklen_t len)
{
	if (setsockopt(fd, level, name, value, len))
		error(1, errno, "option %d of level %d", name, level);
}

void switch_on(int fd, int level, int name)
{
	static const int on = 1;

	set_option(fd, level, name, &on, sizeof(on));
}

static unsigned int group_interface;

/* Both sockets of the kind get what either of them sends, each a packet of its own */
static void join_group(struct slot *slot, int fd, int port)
{
	if (slot->kind == GROUP4) {
		struct ip_mreqn four = { .imr_ifindex = group_interface };

		address(slot, AF_INET, GROUP_IPV4, port);
		four.imr_multiaddr = ((struct sockaddr_in *)&slot->to)->sin_addr;
		set_option(fd, IPPROTO_IP, IP_MULTICAST_IF, &four, sizeof(four));
		set_option(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &four, sizeof(four));
	} else {
		struct ipv6_mreq six = { .ipv6mr_interface = group_interface };

		address(slot, AF_INET6, GROUP_IPV6, port);
		six.ipv6mr_multiaddr = ((struct sockaddr_in6 *)&slot->to)->sin6_addr;
		set_option(fd, IPPROTO_IPV6, IPV6_MULTICAST_IF, &group_interface, sizeof(group_interface));
		set_option(fd, IPPROTO_IPV6, IPV6_ADD_MEMBERSHIP, &six, sizeof(six));
	}
}

/* Binds it, and says where it sends: the first of a kind to the second, that to a port where
 * nobody is or, every other time, to the first
 */
static void bind_slot(struct slot *slot, int fd, const char *host, int port)
{
	static const char *const anywhere[] = { "0.0.0.0", "::" };
	bool group = slot->kind == GROUP4 || slot->kind == GROUP6, first = port % 2 == 0;
	int family = slot->kind == UDP4 || slot->kind == UDPLITE4 || slot->kind == GROUP4 ? AF_INET : AF_INET6;
	int other = first ? port + 1 : port - 1;

	/* A group's port is that of both */
	if (group && !first)
		port = other;
	switch_on(fd, SOL_SOCKET, SO_REUSEADDR);
	address(slot, family, group ? anywhere[family == AF_INET6] : host, port);
	if (bind(fd, (struct sockaddr *)&slot->to, slot->to_len))
		error(1, errno, "bind to port %d", port);
	if (group) {
		join_group(slot, fd, port);
		return;
	}
	if (!first) {
		switch_on(fd, IPPROTO_IP, IP_RECVERR);
		if (family == AF_INET6)
			switch_on(fd, IPPROTO_IPV6, IPV6_RECVERR);
		if (one_in(&(struct thread){ .state = seed + port }, 2))
			other = PORT + 100;
	}
	address(slot, family, host, other);
}

/* Under the descriptor that it had, if it had one */
void replace_slot(struct slot *slot, const struct slot *new)
{
	int fd = new->fd;

	if (slot->fd > 0) {
		if (dup3(fd, slot->fd, O_CLOEXEC) < 0)
			error(1, errno, "dup3");
		close(fd);
		fd = slot->fd;
	}
	*slot = *new;
	slot->fd = fd;
}

/* The socket of a slot, made anew */
static void open_slot(struct slot *slot)
{
	static const int queue = QUEUE, stamps = SOF_TIMESTAMPING_TX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE;
	static const struct {
		int family, type, protocol;
		const char *host;
	} sockets[] = {
		[UDP4] = { AF_INET, SOCK_DGRAM, IPPROTO_UDP, "127.0.0.1" },
		[UDP6] = { AF_INET6, SOCK_DGRAM, IPPROTO_UDP, "::1" },
		[MAPPED] = { AF_INET6, SOCK_DGRAM, IPPROTO_UDP, "::ffff:127.0.0.1" },
		[GROUP4] = { AF_INET, SOCK_DGRAM, IPPROTO_UDP, NULL },
		[GROUP6] = { AF_INET6, SOCK_DGRAM, IPPROTO_UDP, NULL },
		[UDPLITE4] = { AF_INET, SOCK_DGRAM, IPPROTO_UDPLITE, "127.0.0.1" },
		[UDPLITE6] = { AF_INET6, SOCK_DGRAM, IPPROTO_UDPLITE, "::1" },
		[RAW4] = { AF_INET, SOCK_RAW, RAW_PROTOCOL, "127.0.0.1" },
		[RAW6] = { AF_INET6, SOCK_RAW, RAW_PROTOCOL, "::1" },
		[HEADER4] = { AF_INET, SOCK_RAW, IPPROTO_RAW, "127.0.0.1" },
		[HEADER6] = { AF_INET6, SOCK_RAW, IPPROTO_RAW, "::1" },
		[PING4] = { AF_INET, SOCK_DGRAM, IPPROTO_ICMP, "127.0.0.1" },
		[PING6] = { AF_INET6, SOCK_DGRAM, IPPROTO_ICMPV6, "::1" },
		[PACKET] = { AF_PACKET, SOCK_DGRAM, 0, NULL },
		[IDLE] = { AF_INET, SOCK_STREAM, IPPROTO_TCP, NULL },
		[UNIX] = { AF_UNIX, SOCK_DGRAM, 0, NULL },
	};
	unsigned int index = slot - slots;
	/* Others may be using what is there until it is replaced */
	struct slot new = { .kind = index / 2 };
	int fd;

	if (is_stream(new.kind)) {
		open_connection(new.kind);
		return;
	}
	if (is_listener(new.kind)) {
		open_listeners(new.kind);
		return;
	}
	fd = open_socket(sockets[new.kind].family, sockets[new.kind].type,
			 new.kind == PACKET ? htons(ETH_P_ALL) : sockets[new.kind].protocol);
	set_option(fd, SOL_SOCKET, SO_RCVBUF, &queue, sizeof(queue));
	if (new.kind <= UDPLITE6)
		bind_slot(&new, fd, sockets[new.kind].host, PORT + index);
	else if (new.kind < PACKET)
		address(&new, sockets[new.kind].family, sockets[new.kind].host, 0);
	/* The datagrams that it sent come back to its queue of errors */
	if (new.kind < PACKET && index % 4 == 3)
		set_option(fd, SOL_SOCKET, SO_TIMESTAMPING, &stamps, sizeof(stamps));
	if (new.kind < PACKET && index % 4 == 0) {
		if (sockets[new.kind].family == AF_INET)
			switch_on(fd, IPPROTO_IP, IP_PKTINFO);
		else
			switch_on(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO);
	}
	new.talks = index % 4 == 0 || index % 4 == 3;
	new.fd = fd;
	replace_slot(slot, &new);
}

static void begin_thread(struct thread *thread, uint64_t number)
{
	thread->page = sysconf(_SC_PAGESIZE);
	thread->memory = mmap(NULL, (PAGES + 2) * thread->page, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (thread->memory == MAP_FAILED)
		error(1, errno, "mmap");
	thread->readable = thread->memory + (PAGES + 1) * thread->page;
	/* Also a length that is enough, whatever the alignment */
	memset(thread->readable, 1, thread->page);
	if (mprotect(thread->memory + PAGES * thread->page, thread->page, PROT_NONE) ||
	    mprotect(thread->readable, thread->page, PROT_READ))
		error(1, errno, "mprotect");
	thread->state = (seed + number) * 0x9e3779b97f4a7c15ULL | 1;
	any(thread);
}

/* ---- another user ---- */

static uid_t user = NOBODY;

/* What this process has open stays so, and may be used */
static void become_user(void)
{
	if (setgroups(0, NULL) || setresgid(user, user, user) || setresuid(user, user, user))
		error(1, errno, "user %u", (unsigned int)user);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
}

bool write_setting(const char *path, const char *text)
{
	FILE *file = fopen(path, "w");
	bool wrote = file && fputs(text, file) >= 0;

	return file && !fclose(file) && wrote;
}

static void write_file(const char *path, const char *text)
{
	if (!write_setting(path, text))
		error(1, errno, "%s", path);
}

/* A network namespace with the loopback interface and one for groups */
static void make_network(void)
{
	struct ifreq interface = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	int fd;

	if (unshare(CLONE_NEWNET))
		error(1, errno, "unshare");
	fd = open_socket(AF_INET, SOCK_DGRAM, 0);
	if (ioctl(fd, SIOCSIFFLAGS, &interface))
		error(1, errno, "the loopback interface");
	close(fd);
	/* Threads end many connections, and ports have to be left */
	write_setting("/proc/sys/net/ipv4/tcp_max_tw_buckets", "2000");
	group_interface = make_interface();
}

static void open_slots(void)
{
	unsigned int i;

	/* Listeners first: connections are made with them */
	for (i = 2 * LISTENER4; i < SLOTS; i++)
		open_slot(&slots[i]);
	for (i = 0; i < 2 * LISTENER4; i++)
		open_slot(&slots[i]);
}

/* Runs @body in a process that is another user's */
static pid_t begin_user(void (*body)(void *), void *data)
{
	pid_t process = fork();

	if (process < 0)
		error(1, errno, "fork");
	if (!process) {
		become_user();
		body(data);
		_exit(0);
	}
	return process;
}

static void await_user(pid_t process)
{
	int status;

	if (waitpid(process, &status, 0) < 0)
		error(1, errno, "waitpid");
	/* What went wrong it has told itself */
	if (status)
		_exit(1);
}

/* ---- threads ---- */

static void *caller(void *data)
{
	struct thread *thread = data;

	if (!thread->foreign)
		set_privileged(thread, thread->state & 2);
	while (!atomic_load(&shared->ended))
		call_something(thread);
	return NULL;
}

/* Removes and makes keys, and sockets, and writes where others read */
static void *disturber(void *data)
{
	struct thread *thread = data, *victim = thread + 1;

	set_privileged(thread, true);
	while (!atomic_load(&shared->ended)) {
		struct key *key = &keys[below(thread, KEYS)];
		struct timespec pause = { 0, 1000 * below(thread, 2000) };

		switch (below(thread, 6)) {
		case 4:
		case 5:
			stream_disturb(thread);
			break;
		case 0:
			if (!remove_key(key) && make_key(key))
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
	return NULL;
}

static void begin_threads(pthread_t *handles, struct thread *threads, unsigned int count,
			  void *(*first)(void *))
{
	unsigned int i;

	for (i = 0; i < count; i++) {
		int err = pthread_create(&handles[i], NULL, i ? caller : first, &threads[i]);

		if (err)
			error(1, err, "pthread_create");
	}
}

#define THREADS_MAX	64

static unsigned long thread_count = 4;

/* As many threads of another user, with the sockets as they are now */
static void user_threads(void *data)
{
	static struct thread threads[THREADS_MAX];
	pthread_t handles[THREADS_MAX];
	unsigned int i;

	(void)data;
	for (i = 0; i < thread_count; i++) {
		begin_thread(&threads[i], 2 + THREADS_MAX + i);
		threads[i].foreign = true;
	}
	begin_threads(handles, threads, thread_count, caller);
	for (i = 0; i < thread_count; i++)
		pthread_join(handles[i], NULL);
}

static void run_threads(unsigned int seconds)
{
	/* The first one disturbs the others, and writes to the memory of the second */
	static struct thread threads[THREADS_MAX + 1];
	pthread_t handles[THREADS_MAX + 1];
	pid_t process;
	unsigned int i;

	process = begin_user(user_threads, NULL);
	for (i = 0; i <= thread_count; i++)
		begin_thread(&threads[i], i + 2);
	threads[1].disturbed = true;
	begin_threads(handles, threads, thread_count + 1, disturber);
	while (seconds--)
		sleep(1);
	atomic_store(&shared->ended, true);
	for (i = 0; i <= thread_count; i++)
		pthread_join(handles[i], NULL);
	await_user(process);
}

static void call_on(struct thread *thread)
{
	unsigned long end = thread->call + calls / 4;

	thread->foreign = true;
	thread->privileged = false;
	while (thread->call < end)
		call_something(thread);
}

/* Calls by another user, on the sockets as they are then: what may be said to them has not
 * changed with what they hold
 */
static void user_calls(void *data)
{
	/* Capabilities in a user namespace of one's own count for nothing here */
	if (seed % 2 && unshare(CLONE_NEWUSER))
		perror("no user namespace");
	call_on(data);
}

/* Calls by another user in a network namespace of that user's own: only keys that cross over into
 * others are guarded there
 */
static void owner_calls(void *data)
{
	struct thread *thread = data;
	char map[32];

	/* Or else /proc/self is root's still */
	if (prctl(PR_SET_DUMPABLE, 1) || unshare(CLONE_NEWUSER)) {
		perror("no user namespace");
		return;
	}
	snprintf(map, sizeof(map), "0 %u 1", (unsigned int)user);
	write_file("/proc/self/setgroups", "deny");
	write_file("/proc/self/uid_map", map);
	write_file("/proc/self/gid_map", map);
	make_network();
	write_file("/proc/sys/net/ipv4/ping_group_range", "0 0");
	open_slots();
	thread->owner = true;
	thread->call += calls / 4;
	call_on(thread);
}

static void remake_key(struct thread *thread)
{
	struct key *key = &keys[below(thread, KEYS)];
	unsigned int i;

	set_privileged(thread, true);
	if (remove_key(key))
		wrong(thread, "key %u could not be removed", key->id);
	numbers[key->id] = NULL;
	for (i = 0; i < SLOTS; i++) {
		slots[i].mask &= ~(1ULL << key->id);
		slots[i].save &= ~(1ULL << key->id);
		prune(&slots[i].sticky);
		prune(&slots[i].syn);
	}
	stream_prune();
	if (make_key(key))
		wrong(thread, "key %u could not be made again", key->id);
	numbers[key->id] = key;
}

static unsigned long number_of(const char *text, unsigned long long limit)
{
	char *end;
	unsigned long long number;

	errno = 0;
	number = strtoull(text, &end, 10);
	if (errno || *end || *text < '0' || *text > '9' || number > limit)
		error(2, 0, "a number up to %llu is needed, not '%s'", limit, text);
	return number;
}

static void print_outcomes(void)
{
	unsigned int call, err;

	for (call = 0; call < CALLS; call++) {
		for (err = 0; err < ERRNOS; err++) {
			unsigned long count = atomic_load(&shared->outcomes[call][err]);
			const char *name = err ? strerrorname_np(err) : "0";

			if (count && name)
				printf("%s %s %lu\n", call_names[call], name, count);
			else if (count)
				printf("%s %u %lu\n", call_names[call], err, count);
		}
	}
	printf("compared datagrams %lu\ncompared traits %lu\n", atomic_load(&shared->compared_datagrams),
	       atomic_load(&shared->compared_traits));
	printf("compared reads %lu\ncompared joined %lu\ncompared read-traits %lu\ncompared syns %lu\n",
	       atomic_load(&shared->compared_reads), atomic_load(&shared->compared_joined),
	       atomic_load(&shared->compared_read_traits), atomic_load(&shared->compared_syns));
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "calls", required_argument, NULL, 'c' }, { "seconds", required_argument, NULL, 's' },
		{ "threads", required_argument, NULL, 't' }, { "seed", required_argument, NULL, 'e' },
		{ "user", required_argument, NULL, 'u' }, {},
	};
	const char *seed_text = getenv("PACKET_TRAITS_SEED");
	unsigned long seconds = 5;
	struct thread thread = { .checked = true };
	unsigned int i;
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (option) {
		case 'c':
			calls = number_of(optarg, 1000000000);
			break;
		case 's':
			seconds = number_of(optarg, 1000000);
			break;
		case 't':
			thread_count = number_of(optarg, THREADS_MAX);
			break;
		case 'e':
			seed_text = optarg;
			break;
		case 'u':
			user = number_of(optarg, UINT32_MAX - 1);
			break;
		default:
			optind = argc + 1;
		}
	}
	if (optind != argc || !user || !thread_count)
		error(2, 0, "usage: traits-fuzz [--calls N] [--seconds N] [--threads N] [--seed N] [--user UID]; "
		      "at least one thread, and not the user 0");
	seed = seed_text ? number_of(seed_text, UINT64_MAX) : (unsigned long)time(NULL);
	printf("seed %llu\n", (unsigned long long)seed);
	fflush(stdout);

	/* Not all that writes can be told not to raise it */
	signal(SIGPIPE, SIG_IGN);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		error(1, errno, "mmap");
	open_registry();
	make_network();
	write_file("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");

	for (i = 0; i < KEYS; i++) {
		int err = make_key(&keys[i]);

		if (err)
			error(1, err, "a key cannot be registered");
		numbers[keys[i].id] = &keys[i];
	}
	begin_thread(&thread, 1);
	set_privileged(&thread, true);
	open_slots();
	while (thread.call < calls) {
		if (one_in(&thread, 64))
			remake_key(&thread);
		if (one_in(&thread, 16))
			set_privileged(&thread, one_in(&thread, 2));
		call_something(&thread);
	}
	set_privileged(&thread, true);
	await_user(begin_user(user_calls, &thread));
	await_user(begin_user(owner_calls, &thread));

	/* Not as the calls of the other user left them */
	open_slots();
	if (seconds)
		run_threads(seconds);

	for (i = 0; i < SLOTS; i++)
		close(slots[i].fd);
	for (i = 0; i < KEYS; i++)
		remove_key(&keys[i]);
	print_outcomes();
	return 0;
}
