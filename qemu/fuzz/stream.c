// SPDX-License-Identifier: MIT
/*
 * TCP in traits-fuzz: what is known of the bytes under way between both slots of a kind, connections
 * that are made and looked at, and calls of TCP alone.
 *
 * A read has to deliver what the writes become together that it took bytes of. The kernel may have
 * joined some of them before: so what is delivered may also be that of more writes, before and
 * behind, as far as no key that was asked for keeps them apart.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <error.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "fuzz.h"

/* So many of one direction are remembered; before, all has to be read once */
#define WRITES		256
#define WRITES_AT_ONCE	200
#define BYTES_AT_ONCE	100000
/* Enough for these: what is sent again may have other traits */
#define STREAM_QUEUE	200000
#define BACKLOG		8
/* In milliseconds: longer than any guest takes */
#define PATIENCE	60000

struct write {
	uint64_t end;
	struct sent sent;
	/* Some of it is of a message of its own */
	bool own;
	/* Whatever it was sent with, it was with these */
	bool sure;
};

/* One direction */
struct stream {
	uint64_t number, written, read;
	/* Writes so far, and those of them that came before all had been read for the last time */
	uint64_t count, epoch;
	/* Since then, other keys were asked for */
	bool dirty;
	/* Bytes that waited to be sent before the last call */
	size_t unsent;
	struct trait last[RECORDS];
	size_t last_len;
	struct write writes[WRITES];
};

static struct stream streams[STREAM_MAPPED - STREAM4 + 1][2];

static struct stream *stream_of(const struct slot *slot, bool writes)
{
	return &streams[slot->kind - STREAM4][((slot - slots) & 1) ^ !writes];
}

static struct write *write_of(struct stream *stream, uint64_t number)
{
	return &stream->writes[number % WRITES];
}

/* ---- bytes ---- */

static uint8_t byte_at(const struct stream *stream, uint64_t at)
{
	uint64_t word = (stream->number << 40 ^ at >> 3) * 0x9e3779b97f4a7c15ULL;

	return (word ^ word >> 32) >> 8 * (at & 7);
}

void stream_fill(const struct slot *slot, uint8_t *at, size_t before, size_t len)
{
	struct stream *stream = stream_of(slot, true);
	int unsent = 0;
	size_t i;

	for (i = 0; i < len; i++)
		at[i] = byte_at(stream, stream->written + before + i);
	if (!before)
		stream->unsent = ioctl(slot->fd, SIOCOUTQNSD, &unsent) ? 0 : unsent;
}

/* ---- what is written ---- */

void stream_begin(const struct slot *slot)
{
	static uint64_t number;
	unsigned int i;

	for (i = 0; i < 2; i++) {
		struct stream *stream = &streams[slot->kind - STREAM4][i];

		memset(stream, 0, offsetof(struct stream, writes));
		stream->number = ++number;
	}
}

void stream_prune(void)
{
	unsigned int kind, i;
	uint64_t number;

	for (kind = 0; kind <= STREAM_MAPPED - STREAM4; kind++) {
		for (i = 0; i < 2; i++) {
			struct stream *stream = &streams[kind][i];

			for (number = stream->epoch; number < stream->count; number++)
				prune(&write_of(stream, number)->sent);
		}
	}
}

/* Of the last @len bytes nobody knows any more */
static void forget(struct stream *stream, size_t len)
{
	uint64_t number;

	for (number = stream->count; number-- > stream->epoch;) {
		struct write *write = write_of(stream, number);

		if (write->end + len <= stream->written)
			break;
		write->sure = false;
	}
}

void stream_sends_other(const struct slot *slot)
{
	int unsent;

	if (!ioctl(slot->fd, SIOCOUTQNSD, &unsent))
		forget(stream_of(slot, true), unsent);
}

void stream_asks_other(const struct slot *slot)
{
	struct stream *stream = stream_of(slot, false);

	stream->dirty |= stream->read < stream->written;
}

bool stream_is_full(const struct slot *slot)
{
	const struct stream *stream = stream_of(slot, true);

	return stream->written - stream->read > BYTES_AT_ONCE ||
	       (stream->count - stream->epoch > WRITES_AT_ONCE && stream->read < stream->written);
}

static void add_write(struct stream *stream, size_t len, const struct sent *sent, bool own, bool sure)
{
	struct write *write;

	if (stream->read == stream->written) {
		stream->epoch = stream->count;
		stream->dirty = false;
	}
	write = write_of(stream, stream->count++);
	stream->written += len;
	write->end = stream->written;
	write->sent = *sent;
	write->own = own;
	write->sure = sure;
}

void stream_wrote(struct slot *slot, const struct message *message, size_t len)
{
	struct stream *stream = stream_of(slot, true);
	struct sent sent = slot->sticky;
	size_t i, waits = stream->unsent + len;
	uint64_t number;
	bool own = false;
	int unsent;

	for (i = 0; message->certain && i < message->len / sizeof(struct trait); i++)
		put_trait(&sent, &message->records[i]);
	add_write(stream, len, &sent, message->len || !message->certain, message->certain);
	if (message->certain) {
		stream->last_len = message->len;
		memcpy(stream->last, message->records, message->len);
	}

	/* What waits together may have become one segment before those of the socket were added */
	if (!stream->unsent && !ioctl(slot->fd, SIOCOUTQNSD, &unsent))
		waits = (size_t)unsent > len ? (size_t)unsent : 0;
	for (number = stream->count; waits && number-- > stream->epoch;) {
		if (write_of(stream, number)->end + waits <= stream->written)
			break;
		own |= write_of(stream, number)->own;
	}
	if (own)
		forget(stream, waits);
	stream->unsent = stream->unsent ? stream->unsent + len : waits;
}

size_t stream_records(struct thread *thread, const struct slot *slot, struct trait *records)
{
	struct stream *stream = stream_of(slot, true);
	size_t count = stream->last_len / sizeof(*records), i, left = 0;

	for (i = 0; i < count; i++) {
		const struct trait *record = &stream->last[i];

		if (record->key < ALL_KEYS && numbers[record->key] && numbers[record->key]->size == record->len)
			records[left++] = *record;
	}
	/* Of those that need not be the same everywhere */
	if (left && one_in(thread, 2)) {
		i = below(thread, left);
		if (numbers[records[i].key]->merge != TRAITS_MERGE_EXACT)
			fill(thread, records[i].value, records[i].len);
	}
	return left * sizeof(*records);
}

/* ---- what is read ---- */

/* Of each key what became of it */
struct joined {
	bool has[KEYS];
	uint8_t values[KEYS][16];
};

static const struct sent_trait *trait_of(const struct write *write, unsigned int id)
{
	unsigned int i;

	for (i = 0; i < write->sent.count; i++) {
		if (write->sent.traits[i].id == id)
			return &write->sent.traits[i];
	}
	return NULL;
}

static uint64_t integer_of(const uint8_t *value, unsigned int size)
{
	uint64_t eight;
	uint32_t four;

	memcpy(&four, value, sizeof(four));
	memcpy(&eight, value, sizeof(eight));
	return size == 4 ? four : eight;
}

static void put_integer(uint8_t *value, unsigned int size, uint64_t integer)
{
	uint32_t four = integer;

	if (size == 4)
		memcpy(value, &four, sizeof(four));
	else
		memcpy(value, &integer, sizeof(integer));
}

static void join_value(const struct key *key, bool *has, uint8_t *value, const struct sent_trait *next)
{
	uint64_t one, other;

	if (key->merge == TRAITS_MERGE_DROP) {
		*has &= next && !memcmp(value, next->value, 16);
		return;
	}
	if (!next || (*has && key->merge == TRAITS_MERGE_FIRST))
		return;
	if (!*has || key->merge == TRAITS_MERGE_LAST) {
		*has = true;
		memcpy(value, next->value, 16);
		return;
	}
	one = integer_of(value, key->size);
	other = integer_of(next->value, key->size);
	switch (key->merge) {
	case TRAITS_MERGE_MIN:
		one = one < other ? one : other;
		break;
	case TRAITS_MERGE_MAX:
		one = one > other ? one : other;
		break;
	case TRAITS_MERGE_OR:
		one |= other;
		break;
	default:
		one &= other;
	}
	put_integer(value, key->size, one);
}

/* Adds @write, which follows, of the keys in @mask. False if it has to stay apart. */
static bool join(struct joined *joined, const struct write *write, uint64_t mask, bool first)
{
	unsigned int i;

	for (i = 0; i < KEYS; i++) {
		const struct key *key = &keys[i];
		const struct sent_trait *next;

		if (!(mask >> key->id & 1) || numbers[key->id] != key) {
			joined->has[i] = false;
			continue;
		}
		next = trait_of(write, key->id);
		if (first) {
			joined->has[i] = next;
			if (next)
				memcpy(joined->values[i], next->value, 16);
		} else if (key->merge != TRAITS_MERGE_EXACT) {
			join_value(key, &joined->has[i], joined->values[i], next);
		} else if (joined->has[i] != !!next || (next && memcmp(joined->values[i], next->value, 16))) {
			return false;
		}
	}
	return true;
}

/* Those of all writes from @first to @last, or false */
static bool join_all(struct joined *joined, struct stream *stream, uint64_t first, uint64_t last, uint64_t mask)
{
	uint64_t number;

	for (number = first; number <= last; number++) {
		if (!join(joined, write_of(stream, number), mask, number == first))
			return false;
	}
	return true;
}

static bool is_same(const struct joined *joined, const struct control *control)
{
	unsigned int i, j, count = 0;

	for (i = 0; i < KEYS; i++) {
		if (!joined->has[i])
			continue;
		count++;
		for (j = 0; j < control->count && control->records[j].key != keys[i].id; j++)
			;
		if (j == control->count || control->records[j].len != keys[i].size ||
		    memcmp(control->records[j].value, joined->values[i], keys[i].size))
			return false;
	}
	return count == control->count;
}

static bool all_sure(struct stream *stream, uint64_t first, uint64_t last)
{
	uint64_t number;

	for (number = first; number <= last; number++) {
		if (!write_of(stream, number)->sure)
			return false;
	}
	return true;
}

/* Is there room in one store for all that is under way of the keys in @mask? If not, what the kernel
 * has joined already decides what else may be added.
 */
static bool all_fit(struct stream *stream, uint64_t mask)
{
	unsigned int i, size = 0;
	uint64_t number, seen = 0;

	for (number = stream->epoch; number < stream->count; number++) {
		const struct sent *sent = &write_of(stream, number)->sent;

		for (i = 0; i < sent->count; i++) {
			uint64_t bit = 1ULL << sent->traits[i].id;

			if (mask & bit & ~seen)
				size += sent->traits[i].size;
			seen |= bit;
		}
	}
	return size <= STORE;
}

/* Did somebody join these writes with others, so that this is what became of them? */
static bool can_be(struct stream *stream, uint64_t first, uint64_t last, uint64_t mask, const struct control *control)
{
	struct joined joined;
	uint64_t from, to;

	for (from = first;; from--) {
		if (!write_of(stream, from)->sure)
			return true;
		if (!join_all(&joined, stream, from, last, mask))
			return false;
		for (to = last;; to++) {
			if (is_same(&joined, control))
				return true;
			if (to + 1 == stream->count)
				break;
			if (!write_of(stream, to + 1)->sure)
				return true;
			if (!join(&joined, write_of(stream, to + 1), mask, false))
				break;
		}
		if (from == stream->epoch)
			return false;
	}
}

static void look_at_read(struct thread *thread, struct slot *slot, const struct msghdr *header, size_t len, size_t room)
{
	struct stream *stream = stream_of(slot, false);
	uint64_t first = stream->epoch, last, number;
	struct control control;
	struct joined joined;
	bool some = false;

	read_control(thread, slot, header, &control);
	while (write_of(stream, first)->end <= stream->read)
		first++;
	for (last = first; write_of(stream, last)->end < stream->read + len; last++)
		;
	/* Some may have been joined by other rules, or without their traits */
	if (stream->dirty || !all_sure(stream, first, last) || !all_fit(stream, slot->mask))
		return;
	for (number = first; number <= last; number++) {
		join(&joined, write_of(stream, number), slot->mask, true);
		some |= memchr(joined.has, true, sizeof(joined.has)) != NULL;
	}
	/* Without room for any control data it is only told that there is some, and nothing stops */
	if (room && !join_all(&joined, stream, first, last, slot->mask))
		wrong(thread, "a read of kind %d took %zu bytes of writes that have to stay apart, from %llu on",
		      slot->kind, len, (unsigned long long)stream->read);
	if (header->msg_flags & MSG_CTRUNC) {
		if (control.count && !slot->talks)
			wrong(thread, "a read of kind %d delivered %u traits, and MSG_CTRUNC", slot->kind, control.count);
		if (!control.count && !slot->talks && room >= CMSG_SPACE(KEYS * sizeof(struct trait)))
			wrong(thread, "a read of kind %d says MSG_CTRUNC for %zu bytes", slot->kind, room);
		if (!control.count)
			return;
	} else if (!room && some) {
		wrong(thread, "a read of kind %d does not say that there are traits", slot->kind);
	}
	if (room && !can_be(stream, first, last, slot->mask, &control))
		wrong(thread, "a read of kind %d, %zu bytes from %llu on, of %llu writes, delivered %u traits, of which one was not sent so, or was and is missing",
		      slot->kind, len, (unsigned long long)stream->read, (unsigned long long)(last - first + 1),
		      control.count);
	atomic_fetch_add(&shared->compared_reads, 1);
	atomic_fetch_add(&shared->compared_read_traits, control.count);
	if (last > first)
		atomic_fetch_add(&shared->compared_joined, 1);
}

/* It took less than there was: does a key that was asked for end the read there? */
static void look_at_end(struct thread *thread, struct slot *slot, size_t len, size_t wanted, size_t waiting, bool stops)
{
	struct stream *stream = stream_of(slot, false);
	uint64_t end = stream->read + len, number = stream->epoch;
	struct joined joined;

	while (write_of(stream, number)->end < end)
		number++;
	if (number + 1 < stream->count &&
	    (stream->dirty || !all_sure(stream, number, number + 1) || !all_fit(stream, slot->mask)))
		return;
	if (!stops || write_of(stream, number)->end != end || number + 1 == stream->count ||
	    join_all(&joined, stream, number, number + 1, slot->mask))
		wrong(thread, "a read of kind %d took %zu bytes, of %zu that were there and %zu that were asked for",
		      slot->kind, len, waiting, wanted);
}

size_t stream_waiting(const struct slot *slot)
{
	int waiting;

	return ioctl(slot->fd, SIOCINQ, &waiting) ? 0 : waiting;
}

void stream_read(struct thread *thread, struct slot *slot, const struct msghdr *header, size_t len, size_t wanted,
		 size_t waiting, size_t room, int flags, bool known)
{
	struct stream *stream = stream_of(slot, false);
	const uint8_t *payload = header->msg_iov->iov_base;
	struct control control;
	size_t i;

	/* What was sent, as it comes back to who sent it */
	if (flags & MSG_ERRQUEUE) {
		if (known)
			read_control(thread, slot, header, &control);
		return;
	}
	if (!len) {
		if (wanted)
			wrong(thread, "a stream of kind %d has ended", slot->kind);
		return;
	}
	if (len > wanted || stream->read + len > stream->written)
		wrong(thread, "a read of kind %d took %zu bytes, of %zu that were asked for and %llu that were sent",
		      slot->kind, len, wanted, (unsigned long long)(stream->written - stream->read));
	for (i = 0; !(flags & MSG_TRUNC) && i < len; i++) {
		if (payload[i] != byte_at(stream, stream->read + i))
			wrong(thread, "a read of kind %d has another byte at %llu: %#x", slot->kind,
			      (unsigned long long)(stream->read + i), payload[i]);
	}
	if (len < wanted && len < waiting)
		look_at_end(thread, slot, len, wanted, waiting, room);
	if (known)
		look_at_read(thread, slot, header, len, room);
	if (!(flags & MSG_PEEK))
		stream->read += len;
}

/* ---- connections ---- */

static int family_of(enum kind kind)
{
	return kind == STREAM4 || kind == LISTENER4 ? AF_INET : AF_INET6;
}

static const char *host_of(enum kind kind)
{
	switch (kind) {
	case STREAM4:
	case LISTENER4:
		return "127.0.0.1";
	case STREAM6:
		return "::1";
	case STREAM_MAPPED:
		return "::ffff:127.0.0.1";
	default:
		/* Both of them, and mapped */
		return "::";
	}
}

static enum kind listener_of(enum kind kind)
{
	return kind == STREAM4 ? LISTENER4 : LISTENER6;
}

static int port_of(enum kind listener)
{
	return PORT + 200 + listener;
}

void open_listeners(enum kind kind)
{
	static const int queue = 2 * BACKLOG;
	unsigned int i;

	for (i = 0; i < 2; i++) {
		struct slot new = { .kind = kind };

		new.fd = open_socket(family_of(kind), SOCK_STREAM, IPPROTO_TCP);
		switch_on(new.fd, SOL_SOCKET, SO_REUSEADDR);
		switch_on(new.fd, SOL_SOCKET, SO_REUSEPORT);
		setsockopt(new.fd, IPPROTO_TCP, TCP_FASTOPEN, &queue, sizeof(queue));
		address(&new, family_of(kind), host_of(kind), port_of(kind));
		if (bind(new.fd, (struct sockaddr *)&new.to, new.to_len) || listen(new.fd, BACKLOG)) {
			if (slots[2 * kind + i].fd <= 0)
				error(1, errno, "listen at port %d", port_of(kind));
			/* One of the threads has a socket there that shares the port with nobody */
			close(new.fd);
			continue;
		}
		new.to_len = 0;
		replace_slot(&slots[2 * kind + i], &new);
	}
}

static bool wait_for(const int *fds, unsigned int count, short events)
{
	struct pollfd polled[2];
	unsigned int i;

	for (i = 0; i < count; i++)
		polled[i] = (struct pollfd){ .fd = fds[i], .events = events };
	return poll(polled, count, PATIENCE) > 0;
}

/* Both ends of a connection are in use from now on */
static void use_connection(enum kind kind, struct slot *client, struct slot *server)
{
	static const int queue = STREAM_QUEUE;
	struct slot *const new[] = { client, server };
	unsigned int i;

	for (i = 0; i < 2; i++) {
		switch_on(new[i]->fd, IPPROTO_TCP, TCP_NODELAY);
		set_option(new[i]->fd, SOL_SOCKET, SO_RCVBUF, &queue, sizeof(queue));
		set_option(new[i]->fd, SOL_SOCKET, SO_SNDBUF, &queue, sizeof(queue));
		new[i]->to_len = 0;
		/* How much there is to read, as a control message */
		new[i]->talks = i == kind % 2;
		if (new[i]->talks)
			switch_on(new[i]->fd, IPPROTO_TCP, TCP_INQ);
		replace_slot(&slots[2 * kind + i], new[i]);
	}
	stream_begin(&slots[2 * kind]);
}

/* By a listener that nobody else knows, so nobody comes between */
void open_connection(enum kind kind)
{
	struct slot client = { .kind = kind }, server = { .kind = kind }, listener = { .kind = kind };
	socklen_t len = sizeof(listener.to);

	listener.fd = open_socket(family_of(kind), SOCK_STREAM, IPPROTO_TCP);
	switch_on(listener.fd, SOL_SOCKET, SO_REUSEADDR);
	address(&listener, family_of(kind), host_of(kind), 0);
	if (bind(listener.fd, (struct sockaddr *)&listener.to, listener.to_len) || listen(listener.fd, 1) ||
	    getsockname(listener.fd, (struct sockaddr *)&listener.to, &len))
		error(1, errno, "a listener");
	client.fd = open_socket(family_of(kind), SOCK_STREAM, IPPROTO_TCP);
	if (connect(client.fd, (struct sockaddr *)&listener.to, len) && errno != EINPROGRESS)
		error(1, errno, "connect");
	if (!wait_for(&listener.fd, 1, POLLIN) || !wait_for(&client.fd, 1, POLLOUT))
		error(1, 0, "a connection could not be made");
	server.fd = accept4(listener.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (server.fd < 0)
		error(1, errno, "accept");
	close(listener.fd);
	use_connection(kind, &client, &server);
}

static void look_at_syn(struct thread *thread, int fd, const struct sent *sent, const char *where)
{
	struct trait records[ALL_KEYS];
	socklen_t len = sizeof(records);
	unsigned int i, j;

	if (getsockopt(fd, SOL_TRAITS, TRAITS_SYN, records, &len))
		wrong(thread, "TRAITS_SYN %s: errno %d", where, errno);
	note(thread, GET_SYN, 0);
	if (len != sent->count * sizeof(*records))
		wrong(thread, "TRAITS_SYN %s: %u bytes, expected %u traits", where, len, sent->count);
	for (i = 0; i < sent->count; i++) {
		for (j = 0; j < sent->count && records[j].key != sent->traits[i].id; j++)
			;
		if (j == sent->count || records[j].len != sent->traits[i].size ||
		    memcmp(records[j].value, sent->traits[i].value, 16))
			wrong(thread, "TRAITS_SYN %s: key %u has %s", where, sent->traits[i].id,
			      j == sent->count ? "no value" : "another value");
	}
	atomic_fetch_add(&shared->compared_syns, 1);
}

static uint16_t port_at(int fd, int (*name)(int, struct sockaddr *, socklen_t *))
{
	struct sockaddr_storage at = {};
	socklen_t len = sizeof(at);
	uint16_t port;

	name(fd, (struct sockaddr *)&at, &len);
	/* At the same place in both families */
	memcpy(&port, (char *)&at + offsetof(struct sockaddr_in, sin_port), sizeof(port));
	return port;
}

/* Who may not is refused, and all stays as it is */
static void choose_handshake(struct thread *thread)
{
	/* 2: a cookie stands for each request. 519: data in a SYN, and no cookie of that kind. */
	write_setting("/proc/sys/net/ipv4/tcp_syncookies", one_in(thread, 2) ? "2" : "1");
	write_setting("/proc/sys/net/ipv4/tcp_fastopen", one_in(thread, 2) ? "519" : "0");
}

/* The first bytes, with the SYN if that may be */
static size_t connect_with_data(struct thread *thread, struct slot *client, const struct slot *to)
{
	struct stream begun = { .number = UINT32_MAX };
	uint8_t payload[64];
	size_t i, len = 1 + below(thread, sizeof(payload));
	ssize_t length;

	for (i = 0; i < len; i++)
		payload[i] = byte_at(&begun, i);
	length = sendto(client->fd, payload, len, MSG_FASTOPEN | MSG_DONTWAIT | MSG_NOSIGNAL,
			(const struct sockaddr *)&to->to, to->to_len);
	if (length < 0 && errno != EINPROGRESS && errno != EOPNOTSUPP)
		wrong(thread, "sendto with MSG_FASTOPEN: errno %d", errno);
	if (length < 0 && errno == EOPNOTSUPP &&
	    connect(client->fd, (const struct sockaddr *)&to->to, to->to_len) && errno != EINPROGRESS)
		wrong(thread, "connect: errno %d", errno);
	return length > 0 ? length : 0;
}

void stream_connect(struct thread *thread, enum kind kind)
{
	struct slot client = { .kind = kind }, server = { .kind = kind }, to = { .kind = kind };
	enum kind listeners = listener_of(kind);
	const int fds[] = { slots[2 * listeners].fd, slots[2 * listeners + 1].fd };
	const struct slot *listener = NULL;
	struct trait records[RECORDS];
	size_t data = 0, len = make_records(thread, records);
	struct sent sent;
	int err, expected;
	unsigned int i;

	if (one_in(thread, 4))
		choose_handshake(thread);
	client.fd = open_socket(family_of(kind), SOCK_STREAM, IPPROTO_TCP);
	expected = judge_send(thread, &client, records, len, &sent);
	err = setsockopt(client.fd, SOL_TRAITS, TRAITS_SEND, records, len) ? errno : 0;
	note(thread, SET_SEND, err);
	if (err != expected)
		wrong(thread, "TRAITS_SEND before a connection, %zu bytes: errno %d, expected %d", len, err, expected);
	if (!err)
		client.sticky = sent;

	address(&to, family_of(kind), host_of(kind), port_of(listeners));
	if (one_in(thread, 4))
		data = connect_with_data(thread, &client, &to);
	else if (connect(client.fd, (struct sockaddr *)&to.to, to.to_len) && errno != EINPROGRESS)
		wrong(thread, "connect: errno %d", errno);
	if (!wait_for(&client.fd, 1, POLLOUT) || !wait_for(fds, 2, POLLIN))
		wrong(thread, "kind %d: a connection could not be made", kind);
	server.fd = -1;
	for (i = 0; i < 2 && server.fd < 0; i++) {
		listener = &slots[2 * listeners + i];
		server.fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	}
	if (server.fd < 0)
		wrong(thread, "accept: errno %d", errno);
	note(thread, CONNECT, 0);
	if (port_at(server.fd, getpeername) != port_at(client.fd, getsockname))
		wrong(thread, "kind %d: another connection was accepted", kind);

	server.mask = listener->mask;
	server.sticky = listener->sticky;
	for (i = 0; i < client.sticky.count; i++) {
		if (listener->save >> client.sticky.traits[i].id & 1)
			server.syn.traits[server.syn.count++] = client.sticky.traits[i];
	}
	look_at_syn(thread, server.fd, &server.syn, "of an accepted socket");
	look_at_syn(thread, client.fd, &(struct sent){}, "of the socket that sent the SYN");
	if (one_in(thread, 4)) {
		/* The descriptor stays, and the connection goes */
		if (connect(server.fd, &(struct sockaddr){ .sa_family = AF_UNSPEC }, sizeof(struct sockaddr)))
			wrong(thread, "disconnecting: errno %d", errno);
		look_at_syn(thread, server.fd, &(struct sent){}, "of a socket without a connection");
		close(server.fd);
		close(client.fd);
		return;
	}
	use_connection(kind, &client, &server);
	if (data) {
		/* Its bytes are those of a number that was known before there was a stream */
		streams[kind - STREAM4][0].number = UINT32_MAX;
		add_write(&streams[kind - STREAM4][0], data, &client.sticky, false, true);
	}
}

/* ---- in each other's way ---- */

static struct slot *any_slot(struct thread *thread, enum kind first, enum kind last)
{
	return &slots[2 * first + below(thread, 2 * (last - first + 1))];
}

static void to_listener(const struct slot *slot, struct slot *to)
{
	enum kind kind = is_stream(slot->kind) ? slot->kind : STREAM4;

	memset(to, 0, sizeof(*to));
	address(to, family_of(kind), host_of(kind), port_of(listener_of(kind)));
}

/* Data with the SYN, and traits of its own */
static void send_fast(struct thread *thread, struct slot *slot)
{
	struct trait records[RECORDS];
	char control[CMSG_SPACE(sizeof(records))] = {}, payload[256] = {};
	size_t len = make_records(thread, records);
	struct cmsghdr cmsg = { .cmsg_len = CMSG_LEN(len), .cmsg_level = SOL_TRAITS, .cmsg_type = SCM_TRAITS };
	struct iovec vector = { payload, below(thread, sizeof(payload)) };
	struct msghdr header = { .msg_iov = &vector, .msg_iovlen = 1 };
	struct slot to;

	to_listener(slot, &to);
	memcpy(control, &cmsg, sizeof(cmsg));
	memcpy(control + CMSG_LEN(0), records, len);
	header.msg_name = &to.to;
	header.msg_namelen = to.to_len;
	if (one_in(thread, 4)) {
		header.msg_control = NULL;
	} else {
		header.msg_control = control;
		header.msg_controllen = CMSG_SPACE(len);
	}
	note(thread, SEND, sendmsg(slot->fd, &header, MSG_FASTOPEN | MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? errno : 0);
}

/* Whoever comes, under any descriptor of TCP or not at all */
static void accept_any(struct thread *thread)
{
	struct slot *listener = any_slot(thread, LISTENER4, LISTENER6);
	struct trait records[ALL_KEYS];
	socklen_t len = sizeof(records);
	int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	note(thread, CONNECT, fd < 0 ? errno : 0);
	if (fd < 0)
		return;
	note(thread, GET_SYN, getsockopt(fd, SOL_TRAITS, TRAITS_SYN, records, &len) ? errno : 0);
	if (len % sizeof(*records))
		wrong(thread, "TRAITS_SYN has %u bytes", len);
	if (one_in(thread, 3))
		dup3(fd, any_slot(thread, STREAM4, STREAM_MAPPED)->fd, O_CLOEXEC);
	close(fd);
}

static void set_any(struct thread *thread, int fd)
{
	static const struct {
		int level, name;
		int values[3];
	} options[] = {
		{ IPPROTO_TCP, TCP_NODELAY, { 0, 1, 1 } }, { IPPROTO_TCP, TCP_CORK, { 0, 0, 1 } },
		{ IPPROTO_TCP, TCP_SAVE_SYN, { 0, 1, 2 } }, { IPPROTO_TCP, TCP_DEFER_ACCEPT, { 0, 1, 1 } },
		{ IPPROTO_TCP, TCP_FASTOPEN_CONNECT, { 0, 1, 1 } }, { IPPROTO_TCP, TCP_INQ, { 0, 1, 1 } },
		{ IPPROTO_TCP, TCP_MAXSEG, { 88, 500, 1400 } }, { IPPROTO_TCP, TCP_WINDOW_CLAMP, { 500, 5000, 65535 } },
		{ SOL_SOCKET, SO_RCVBUF, { 1000, 8000, STREAM_QUEUE } }, { SOL_SOCKET, SO_SNDBUF, { 1000, 8000, STREAM_QUEUE } },
		{ SOL_SOCKET, SO_ZEROCOPY, { 0, 1, 1 } }, { SOL_SOCKET, SO_OOBINLINE, { 0, 1, 1 } },
	};
	struct linger reset = { .l_onoff = one_in(thread, 2) };
	unsigned int which = below(thread, sizeof(options) / sizeof(options[0]) + 1);

	if (which == sizeof(options) / sizeof(options[0]))
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	else
		setsockopt(fd, options[which].level, options[which].name, &options[which].values[below(thread, 3)],
			   sizeof(int));
}

/* Without anybody who asks for traits */
static void move_bytes(struct thread *thread, int fd)
{
	static __thread uint8_t bytes[4096];
	int flags[] = { MSG_OOB, MSG_WAITALL, MSG_PEEK, MSG_TRUNC, 0 };
	int ends[2];

	switch (below(thread, 5)) {
	case 0:
		if (read(fd, bytes, below(thread, sizeof(bytes))) < 0)
			return;
		break;
	case 1:
		send(fd, bytes, below(thread, sizeof(bytes)), MSG_NOSIGNAL | (one_in(thread, 2) ? MSG_OOB : 0));
		break;
	case 2:
		send(fd, bytes, below(thread, sizeof(bytes)), MSG_NOSIGNAL | MSG_ZEROCOPY | MSG_DONTWAIT);
		break;
	case 3:
		recv(fd, bytes, below(thread, sizeof(bytes)), MSG_DONTWAIT | flags[below(thread, 5)]);
		break;
	default:
		if (pipe2(ends, O_CLOEXEC | O_NONBLOCK))
			return;
		/* From one socket to another */
		if (splice(fd, NULL, ends[1], NULL, sizeof(bytes), SPLICE_F_NONBLOCK) > 0 &&
		    splice(ends[0], NULL, any_slot(thread, STREAM4, STREAM_MAPPED)->fd, NULL, sizeof(bytes),
			   SPLICE_F_NONBLOCK) < 0 && errno == EFAULT)
			wrong(thread, "splice: EFAULT");
		close(ends[0]);
		close(ends[1]);
	}
}

void stream_call(struct thread *thread, struct slot *slot)
{
	struct slot to;

	switch (below(thread, 10)) {
	case 0:
		to_listener(slot, &to);
		note(thread, CONNECT, connect(slot->fd, (struct sockaddr *)&to.to, to.to_len) ? errno : 0);
		break;
	case 1:
		if (!is_listener(slot->kind) || one_in(thread, 16))
			connect(slot->fd, &(struct sockaddr){ .sa_family = AF_UNSPEC }, sizeof(struct sockaddr));
		break;
	case 2:
		if (one_in(thread, 8))
			shutdown(slot->fd, below(thread, 3));
		break;
	case 3:
		send_fast(thread, slot);
		break;
	case 4:
		if (one_in(thread, 4))
			listen(slot->fd, below(thread, BACKLOG));
		break;
	case 5:
		set_any(thread, slot->fd);
		break;
	case 6:
	case 7:
		move_bytes(thread, slot->fd);
		break;
	default:
		accept_any(thread);
	}
}

/* So many that a listener with a short queue answers with cookies, and that are gone again at once */
static void connect_many(struct thread *thread)
{
	const struct slot *slot = any_slot(thread, STREAM4, STREAM_MAPPED);
	struct linger reset = { .l_onoff = 1 };
	struct trait records[RECORDS];
	int fds[2 * BACKLOG];
	struct slot to;
	unsigned int i;

	to_listener(slot, &to);
	for (i = 0; i < 2 * BACKLOG; i++) {
		size_t len = make_records(thread, records);

		fds[i] = open_socket(to.to.ss_family, SOCK_STREAM, IPPROTO_TCP);
		setsockopt(fds[i], SOL_TRAITS, TRAITS_SEND, records, len);
		connect(fds[i], (struct sockaddr *)&to.to, to.to_len);
	}
	for (i = 0; i < 2 * BACKLOG; i++) {
		if (!one_in(thread, 4))
			setsockopt(fds[i], SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
		close(fds[i]);
	}
}

void stream_disturb(struct thread *thread)
{
	static const char *const cookies[] = { "0", "1", "2" };
	uint64_t mask;

	switch (below(thread, 8)) {
	case 0:
		/* With whatever waits to be accepted */
		open_listeners(one_in(thread, 2) ? LISTENER4 : LISTENER6);
		break;
	case 1:
		write_setting("/proc/sys/net/ipv4/tcp_syncookies", cookies[below(thread, 3)]);
		write_setting("/proc/sys/net/ipv4/tcp_fastopen", one_in(thread, 2) ? "519" : "7");
		write_setting("/proc/sys/net/ipv4/tcp_migrate_req", one_in(thread, 2) ? "1" : "0");
		break;
	case 2:
		mask = make_mask(thread);
		setsockopt(any_slot(thread, LISTENER4, LISTENER6)->fd, SOL_TRAITS,
			   one_in(thread, 2) ? TRAITS_SAVE_SYN : TRAITS_RECV, &mask, sizeof(mask));
		break;
	case 3 ... 5:
		/* Others have ended those that there were */
		open_connection(STREAM4 + below(thread, STREAM_MAPPED - STREAM4 + 1));
		break;
	default:
		connect_many(thread);
	}
}
