/* SPDX-License-Identifier: MIT */
/*
 * What the parts of traits-fuzz share: the calls and how they are counted, the keys, the sockets, and
 * random numbers.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <linux/traits.h>
#include <linux/traits_netlink.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/uio.h>

#ifndef TRAITS_SAVE_SYN
#define TRAITS_SAVE_SYN	3
#define TRAITS_SYN	4
#endif

/* More than one store has room for: the last ones are of 16 bytes */
#define KEYS		18
#define CHANGING	12
#define ALL_KEYS	64
#define RECORDS		80
#define STORE		192
#define PAGES		20
#define PORT		4260
#define ERRNOS		140
#define BATCH		4
#define LARGEST_OF_BATCH	1024

enum call { SET_RECV, SET_SEND, SET_SAVE, SET_OTHER, GET_RECV, GET_SEND, GET_SAVE, GET_SYN, GET_OTHER, SEND, SEND_MANY,
	    RECEIVE, RECEIVE_MANY, CONNECT, CALLS };

/* In memory that the processes of another user have as well */
struct shared {
	atomic_ulong outcomes[CALLS][ERRNOS];
	/* Of which it is known with what they were sent */
	atomic_ulong compared_datagrams, compared_traits;
	/* The same of reads of streams, those among them with bytes of more than one write, and of SYNs */
	atomic_ulong compared_reads, compared_joined, compared_read_traits, compared_syns;
	atomic_bool ended;
};

extern struct shared *shared;

/* A key as it is registered now; made counts how often */
struct key {
	unsigned int id, size, flags, merge, made;
};

extern struct key keys[KEYS];
/* For each number the key that has it, or NULL */
extern struct key *numbers[ALL_KEYS];

/* Traits with which something was said to be sent */
struct sent {
	unsigned int count;
	struct sent_trait {
		unsigned int id, size, made;
		uint8_t value[16];
	} traits[RECORDS];
};

/* Up to UDPLITE6 those whose datagrams are followed, up to PING6 those that send; behind PACKET those
 * of TCP: both ends of a connection, two listeners at one port, not connected
 */
enum kind { UDP4, UDP6, MAPPED, GROUP4, GROUP6, UDPLITE4, UDPLITE6, RAW4, RAW6, HEADER4, HEADER6, PING4, PING6, PACKET,
	    STREAM4, STREAM6, STREAM_MAPPED, LISTENER4, LISTENER6, IDLE, UNIX, KINDS };

struct slot {
	enum kind kind;
	int fd;
	struct sockaddr_storage to;
	socklen_t to_len;
	/* What the options hold */
	uint64_t mask, save;
	struct sent sticky, syn;
	/* Up to this datagram it may have asked for nothing: they were stripped then */
	uint64_t silent;
	/* UDP_CORK; and of a datagram under way, which may have been begun out of the ordinary */
	bool held, corked, odd;
	uint64_t cork;
	/* Gives other control messages too */
	bool talks;
};

#define SLOTS	(2 * KINDS)

extern struct slot slots[SLOTS];

struct thread {
	uint64_t state;
	/* Disturbed: somebody else writes to its memory; foreign: another user's; owner: who has
	 * capabilities over the network namespace, and no others
	 */
	bool checked, privileged, disturbed, foreign, owner;
	unsigned long call;
	/* PAGES that can be written, and one behind that cannot be touched; one to be read only */
	uint8_t *memory, *readable;
	size_t page;
};

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

struct control {
	struct trait records[ALL_KEYS];
	unsigned int count;
	bool others;
};

static inline bool is_stream(enum kind kind)
{
	return kind >= STREAM4 && kind <= STREAM_MAPPED;
}

static inline bool is_listener(enum kind kind)
{
	return kind == LISTENER4 || kind == LISTENER6;
}

static inline bool is_tcp(enum kind kind)
{
	return kind >= STREAM4 && kind <= IDLE;
}

/* ---- main.c ---- */

void wrong(const struct thread *thread, const char *format, ...) __attribute__((format(printf, 2, 3), noreturn));
void note(struct thread *thread, enum call call, int err);
uint64_t any(struct thread *thread);
unsigned int below(struct thread *thread, unsigned int bound);
bool one_in(struct thread *thread, unsigned int bound);
void fill(struct thread *thread, uint8_t *bytes, unsigned int count);

const struct key *key_of(unsigned int id, unsigned int made);
void prune(struct sent *sent);
void put_trait(struct sent *sent, const struct trait *record);
size_t make_records(struct thread *thread, struct trait *records);
int judge_send(const struct thread *thread, const struct slot *slot, const struct trait *records, size_t len,
	       struct sent *sent);
/* The numbers of half of the keys, as a mask */
uint64_t make_mask(struct thread *thread);
void *bad_address(struct thread *thread);
void read_control(struct thread *thread, const struct slot *slot, const struct msghdr *header,
		  struct control *control);

int open_socket(int family, int type, int protocol);
void set_option(int fd, int level, int name, const void *value, socklen_t len);
void switch_on(int fd, int level, int name);
void address(struct slot *slot, int family, const char *host, int port);
/* What is behind the descriptor of @slot is that of @new from now on, and so is what is known of it */
void replace_slot(struct slot *slot, const struct slot *new);
bool write_setting(const char *path, const char *text);

/* ---- stream.c ---- */

/* What is known of the streams between both slots of a kind is of no use any more: they begin anew */
void stream_begin(const struct slot *slot);
/* The keys that are gone are gone from what is under way */
void stream_prune(void);
/* Before and after a call that sets what @slot sends: bytes that wait get it as well, or do not */
void stream_sends_other(const struct slot *slot);
/* @slot asks for other keys from now on */
void stream_asks_other(const struct slot *slot);
/* So much is to be read at the other end that this one may not write */
bool stream_is_full(const struct slot *slot);
/* Of @len bytes that @slot writes next, behind @before others */
void stream_fill(const struct slot *slot, uint8_t *at, size_t before, size_t len);
/* Records like those of the last write, without keys that are gone; returns the number of bytes */
size_t stream_records(struct thread *thread, const struct slot *slot, struct trait *records);
/* @message was sent, or the first @len bytes of it */
void stream_wrote(struct slot *slot, const struct message *message, size_t len);
/* Bytes that can be read */
size_t stream_waiting(const struct slot *slot);
/* A read was given @len bytes, of @wanted where @waiting were there; with control data in @header if
 * it is known what is there, and payload if it was written
 */
void stream_read(struct thread *thread, struct slot *slot, const struct msghdr *header, size_t len, size_t wanted,
		 size_t waiting, size_t room, int flags, bool known);

/* Makes both slots of a kind anew, a connection or two listeners */
void open_connection(enum kind kind);
void open_listeners(enum kind kind);
/* A connection as it is made by somebody who looks at everything */
void stream_connect(struct thread *thread, enum kind kind);
/* Calls of TCP alone, with any of the sockets and whatever others do with them */
void stream_call(struct thread *thread, struct slot *slot);
/* Settings and listeners change while connections are made */
void stream_disturb(struct thread *thread);

#endif
