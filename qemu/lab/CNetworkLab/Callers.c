// SPDX-License-Identifier: MIT
/*
 * The socket calls of 32-bit programs, and those of rings, without the libraries that
 * would make them.
 */
#define _GNU_SOURCE
#include "CNetworkLab.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <linux/time_types.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

/* As the kernel's for programs of 32 bits (linux/compat.h) */
struct msghdr32 {
	uint32_t name;
	int32_t name_length;
	uint32_t vector;
	uint32_t vector_length;
	uint32_t control;
	uint32_t control_length;
	uint32_t flags;
};

struct iovec32 {
	uint32_t base;
	uint32_t length;
};

struct mmsghdr32 {
	struct msghdr32 header;
	uint32_t length;
};

/* Numbers of 32-bit system calls (arch/x86/entry/syscalls/syscall_32.tbl) */
#define CALL32_GETPID		20
#define CALL32_SOCKETCALL	102
#define CALL32_SENDMMSG		345
#define CALL32_GETSOCKOPT	365
#define CALL32_SETSOCKOPT	366
#define CALL32_SENDMSG		370
#define CALL32_RECVMSG		372
/* The one whose time has 64 bits: the other is there with CONFIG_COMPAT_32BIT_TIME alone */
#define CALL32_RECVMMSG		417
#define CALL32_IO_URING_SETUP	425

/* linux/net.h */
#define SOCKETCALL_SENDMSG	16
#define SOCKETCALL_RECVMSG	17

/* What a call needs, where 32 bits reach it */
#define PART	(80 * 1024)

struct low {
	uint8_t payload[PART];
	uint8_t control[PART];
	struct mmsghdr32 many;
	struct iovec32 vector;
	uint32_t arguments[6];
	struct io_uring_params parameters;
};

static struct low *low_make(void)
{
	struct low *low = mmap(NULL, sizeof(*low), PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);

	return low == MAP_FAILED ? NULL : low;
}

static void low_free(struct low *low)
{
	munmap(low, sizeof(*low));
}

static uint32_t address32(const void *at)
{
	return (uint32_t)(uintptr_t)at;
}

static long call32(long number, uint32_t a, uint32_t b, uint32_t c, uint32_t d, uint32_t e)
{
#ifdef __x86_64__
	long result;

	asm volatile("int $0x80" : "=a"(result)
		     : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e)
		     : "memory", "r8", "r9", "r10", "r11");
	return (int)result;
#else
	return -ENOSYS;
#endif
}

int lab_has_calls32(void)
{
	int status;
	pid_t child;

	/* Where there are none the program may be ended */
	child = fork();
	if (child < 0)
		return 0;
	if (!child) {
		signal(SIGSEGV, SIG_DFL);
		_exit(call32(CALL32_GETPID, 0, 0, 0, 0, 0) == getpid() ? 0 : 1);
	}
	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			return 0;
	return WIFEXITED(status) && !WEXITSTATUS(status);
}

int lab_fork_idle(void)
{
	pid_t child = fork();

	if (child < 0)
		return -errno;
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	return child;
}

long lab_setsockopt32(int socket, int level, int name, const void *value, unsigned int length)
{
	struct low *low = low_make();
	long result;

	if (!low)
		return -ENOMEM;
	memcpy(low->payload, value, length < PART ? length : PART);
	result = call32(CALL32_SETSOCKOPT, socket, level, name, address32(low->payload), length);
	low_free(low);
	return result;
}

long lab_getsockopt32(int socket, int level, int name, void *value, unsigned int *length)
{
	struct low *low = low_make();
	unsigned int room = *length;
	long result;

	if (!low)
		return -ENOMEM;
	memcpy(low->payload, value, room < PART ? room : PART);
	low->arguments[0] = room;
	result = call32(CALL32_GETSOCKOPT, socket, level, name, address32(low->payload),
			address32(low->arguments));
	*length = low->arguments[0];
	memcpy(value, low->payload, room < PART ? room : PART);
	low_free(low);
	return result;
}

static struct low *low_message(const struct lab_message *message)
{
	struct msghdr32 *header;
	struct low *low;

	if (message->payload_length > PART || message->control_length > PART)
		return NULL;
	low = low_make();
	if (!low)
		return NULL;
	memcpy(low->payload, message->payload, message->payload_length);
	if (message->control_length)
		memcpy(low->control, message->control, message->control_length);
	low->vector.base = address32(low->payload);
	low->vector.length = message->payload_length;
	header = &low->many.header;
	header->vector = address32(&low->vector);
	header->vector_length = 1;
	header->control = message->control_length ? address32(low->control) : 0;
	header->control_length = message->control_length;
	return low;
}

static void low_received(const struct low *low, struct lab_message *message, long length)
{
	const struct msghdr32 *header = &low->many.header;

	if (length < 0)
		return;
	memcpy(message->payload, low->payload,
	       (size_t)length < message->payload_length ? (size_t)length : message->payload_length);
	if (message->control_length)
		memcpy(message->control, low->control, message->control_length);
	message->payload_length = length;
	message->control_length = header->control_length;
	message->flags = header->flags;
}

static long transfer32(struct low *low, enum lab_call32 call, int socket, int flags, int is_sending)
{
	long result;

	switch (call) {
	case LAB_CALL32_OWN:
		return call32(is_sending ? CALL32_SENDMSG : CALL32_RECVMSG, socket,
			      address32(&low->many.header), flags, 0, 0);
	case LAB_CALL32_SOCKETCALL:
		low->arguments[0] = socket;
		low->arguments[1] = address32(&low->many.header);
		low->arguments[2] = flags;
		return call32(CALL32_SOCKETCALL, is_sending ? SOCKETCALL_SENDMSG : SOCKETCALL_RECVMSG,
			      address32(low->arguments), 0, 0, 0);
	default:
		result = call32(is_sending ? CALL32_SENDMMSG : CALL32_RECVMMSG, socket,
				address32(&low->many), 1, flags, 0);
		return result == 1 ? (long)low->many.length : result;
	}
}

long lab_sendmsg32(enum lab_call32 call, int socket, const struct lab_message *message)
{
	struct low *low = low_message(message);
	long result;

	if (!low)
		return -ENOMEM;
	result = transfer32(low, call, socket, message->flags, 1);
	low_free(low);
	return result;
}

long lab_recvmsg32(enum lab_call32 call, int socket, struct lab_message *message)
{
	struct low *low = low_message(message);
	long result;

	if (!low)
		return -ENOMEM;
	result = transfer32(low, call, socket, message->flags, 0);
	low_received(low, message, result);
	low_free(low);
	return result;
}

/* Rings: one request at a time, which makes the queues simple. */

#define ENTRIES		8

/* Behind what the headers of Debian 12 know (linux/io_uring.h) */
#define SOCKET_SETSOCKOPT	3

/* For messages that are received by one request */
#define BUFFER_GROUP	1
#define BUFFERS		16
#define BUFFER_SIZE	4096

struct lab_ring {
	int descriptor;
	int is32;
	struct io_uring_params parameters;
	void *submissions, *completions;
	size_t submissions_size, completions_size;
	struct io_uring_sqe *entries;
	/* The message of the request under way */
	struct low *low;
	struct lab_message *message;
	struct msghdr header;
	struct iovec vector;
	uint8_t *buffers;
};

struct lab_ring *lab_ring_make(int is32)
{
	struct lab_ring *ring = calloc(1, sizeof(*ring));
	struct low *low;
	int err;

	if (!ring)
		return NULL;
	ring->is32 = is32;
	ring->submissions = ring->completions = ring->entries = MAP_FAILED;
	if (is32) {
		low = low_make();
		ring->descriptor = -1;
		errno = ENOMEM;
		if (!low)
			goto failed;
		ring->descriptor = call32(CALL32_IO_URING_SETUP, ENTRIES,
					  address32(&low->parameters), 0, 0, 0);
		ring->parameters = low->parameters;
		low_free(low);
		if (ring->descriptor < 0) {
			errno = -ring->descriptor;
			goto failed;
		}
	} else {
		ring->descriptor = syscall(SYS_io_uring_setup, ENTRIES, &ring->parameters);
		if (ring->descriptor < 0)
			goto failed;
	}

	ring->submissions_size = ring->parameters.sq_off.array +
				 ring->parameters.sq_entries * sizeof(uint32_t);
	ring->completions_size = ring->parameters.cq_off.cqes +
				 ring->parameters.cq_entries * sizeof(struct io_uring_cqe);
	ring->submissions = mmap(NULL, ring->submissions_size, PROT_READ | PROT_WRITE, MAP_SHARED,
				 ring->descriptor, IORING_OFF_SQ_RING);
	ring->completions = mmap(NULL, ring->completions_size, PROT_READ | PROT_WRITE, MAP_SHARED,
				 ring->descriptor, IORING_OFF_CQ_RING);
	ring->entries = mmap(NULL, ring->parameters.sq_entries * sizeof(struct io_uring_sqe),
			     PROT_READ | PROT_WRITE, MAP_SHARED, ring->descriptor,
			     IORING_OFF_SQES);
	ring->buffers = malloc(BUFFERS * BUFFER_SIZE);
	if (ring->submissions != MAP_FAILED && ring->completions != MAP_FAILED &&
	    ring->entries != MAP_FAILED && ring->buffers)
		return ring;
failed:
	err = errno;
	lab_ring_free(ring);
	errno = err;
	return NULL;
}

void lab_ring_free(struct lab_ring *ring)
{
	if (ring->submissions != MAP_FAILED)
		munmap(ring->submissions, ring->submissions_size);
	if (ring->completions != MAP_FAILED)
		munmap(ring->completions, ring->completions_size);
	if (ring->entries != MAP_FAILED)
		munmap(ring->entries, ring->parameters.sq_entries * sizeof(struct io_uring_sqe));
	/* Ends the request under way */
	if (ring->descriptor >= 0)
		close(ring->descriptor);
	if (ring->low)
		low_free(ring->low);
	free(ring->buffers);
	free(ring);
}

/* Hands a request over, and does not wait for it */
static long ring_submit(struct lab_ring *ring, const struct io_uring_sqe *entry)
{
	_Atomic uint32_t *tail = ring->submissions + ring->parameters.sq_off.tail;
	uint32_t *mask = ring->submissions + ring->parameters.sq_off.ring_mask;
	uint32_t *array = ring->submissions + ring->parameters.sq_off.array;
	uint32_t next = atomic_load_explicit(tail, memory_order_relaxed), index = next & *mask;
	long status;

	ring->entries[index] = *entry;
	array[index] = index;
	atomic_store_explicit(tail, next + 1, memory_order_release);
	status = syscall(SYS_io_uring_enter, ring->descriptor, 1, 0, 0, NULL, 0);
	if (status < 0)
		return -errno;
	return status == 1 ? 0 : -EBUSY;
}

/* The next completion, which may be 10 seconds in coming */
static long ring_complete(struct lab_ring *ring, struct io_uring_cqe *completion)
{
	_Atomic uint32_t *head = ring->completions + ring->parameters.cq_off.head;
	_Atomic uint32_t *tail = ring->completions + ring->parameters.cq_off.tail;
	uint32_t *mask = ring->completions + ring->parameters.cq_off.ring_mask;
	struct io_uring_cqe *all = ring->completions + ring->parameters.cq_off.cqes;
	uint32_t next = atomic_load_explicit(head, memory_order_relaxed);
	struct __kernel_timespec limit = { .tv_sec = 10 };
	struct io_uring_getevents_arg argument = { .ts = (uintptr_t)&limit };

	while (next == atomic_load_explicit(tail, memory_order_acquire)) {
		if (syscall(SYS_io_uring_enter, ring->descriptor, 0, 1,
			    IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &argument,
			    sizeof(argument)) < 0 && errno != EINTR)
			return -errno;
	}
	*completion = all[next & *mask];
	atomic_store_explicit(head, next + 1, memory_order_release);
	return 0;
}

/* The result of a request that has one completion, and with IORING_CQE_F_MORE another one */
static long ring_result(struct lab_ring *ring)
{
	struct io_uring_cqe completion, notice;
	long err;

	err = ring_complete(ring, &completion);
	if (err)
		return err;
	if (completion.flags & IORING_CQE_F_MORE) {
		err = ring_complete(ring, &notice);
		if (err)
			return err;
		if (!(notice.flags & IORING_CQE_F_NOTIF))
			return -EBADMSG;
	}
	return completion.res;
}

static long ring_begin(struct lab_ring *ring, int socket, int operation, int is_async,
		       struct lab_message *message)
{
	struct io_uring_sqe entry = {
		.opcode = operation,
		.flags = is_async ? IOSQE_ASYNC : 0,
		.fd = socket,
		.len = 1,
		.msg_flags = message->flags,
	};

	if (ring->message)
		return -EBUSY;
	if (ring->is32) {
		ring->low = low_message(message);
		if (!ring->low)
			return -ENOMEM;
		entry.addr = (uintptr_t)&ring->low->many.header;
	} else {
		ring->vector = (struct iovec){ message->payload, message->payload_length };
		ring->header = (struct msghdr){
			.msg_iov = &ring->vector, .msg_iovlen = 1,
			.msg_control = message->control_length ? message->control : NULL,
			.msg_controllen = message->control_length,
		};
		entry.addr = (uintptr_t)&ring->header;
	}
	ring->message = message;
	return ring_submit(ring, &entry);
}

static long ring_end(struct lab_ring *ring, int is_receiving)
{
	struct lab_message *message = ring->message;
	long result = ring_result(ring);

	ring->message = NULL;
	if (ring->is32) {
		if (is_receiving)
			low_received(ring->low, message, result);
		low_free(ring->low);
		ring->low = NULL;
	} else if (is_receiving && result >= 0) {
		message->payload_length = result;
		message->control_length = ring->header.msg_controllen;
		message->flags = ring->header.msg_flags;
	}
	return result;
}

long lab_ring_sendmsg(struct lab_ring *ring, int socket, enum lab_request request,
		      const struct lab_message *message)
{
	struct lab_message copy = *message;
	int operation = request == LAB_REQUEST_WITHOUT_COPY ? IORING_OP_SENDMSG_ZC : IORING_OP_SENDMSG;
	long err = ring_begin(ring, socket, operation, request == LAB_REQUEST_BY_WORKER, &copy);

	return err ? err : ring_end(ring, 0);
}

long lab_ring_begin_recvmsg(struct lab_ring *ring, int socket, enum lab_request request,
			    struct lab_message *message)
{
	return ring_begin(ring, socket, IORING_OP_RECVMSG, request == LAB_REQUEST_BY_WORKER, message);
}

long lab_ring_end_recvmsg(struct lab_ring *ring)
{
	return ring_end(ring, 1);
}

long lab_ring_recvmsg_many(struct lab_ring *ring, int socket, struct lab_message *messages,
			   unsigned int count)
{
	struct io_uring_sqe provide = {
		.opcode = IORING_OP_PROVIDE_BUFFERS,
		.fd = BUFFERS,
		.addr = (uintptr_t)ring->buffers,
		.len = BUFFER_SIZE,
		.buf_group = BUFFER_GROUP,
	};
	struct io_uring_sqe receive = {
		.opcode = IORING_OP_RECVMSG,
		.flags = IOSQE_BUFFER_SELECT,
		.ioprio = IORING_RECV_MULTISHOT,
		.fd = socket,
		.addr = (uintptr_t)&ring->header,
		.len = 1,
		.msg_flags = MSG_DONTWAIT,
		.buf_group = BUFFER_GROUP,
	};
	unsigned int received = 0;
	long err;

	if (ring->is32 || count > BUFFERS || !count)
		return -EINVAL;
	err = ring_submit(ring, &provide);
	if (!err)
		err = ring_result(ring);
	if (err)
		return err;

	/* How much of each buffer is for control data */
	ring->header = (struct msghdr){ .msg_controllen = messages[0].control_length };
	err = ring_submit(ring, &receive);
	while (!err) {
		struct io_uring_cqe completion;
		struct io_uring_recvmsg_out *out;
		struct lab_message *message;
		size_t length;

		err = ring_complete(ring, &completion);
		if (err)
			break;
		if (completion.res < 0) {
			err = completion.res == -EAGAIN ? 0 : completion.res;
			break;
		}
		if (!(completion.flags & IORING_CQE_F_BUFFER) || received == count) {
			err = -EBADMSG;
			break;
		}
		out = (void *)(ring->buffers +
			       (completion.flags >> IORING_CQE_BUFFER_SHIFT) * BUFFER_SIZE);
		message = &messages[received++];
		length = out->payloadlen;
		if (out->controllen > message->control_length || length > message->payload_length) {
			err = -EMSGSIZE;
			break;
		}
		memcpy(message->control, out + 1, out->controllen);
		memcpy(message->payload, (uint8_t *)(out + 1) + ring->header.msg_controllen, length);
		message->control_length = out->controllen;
		message->payload_length = length;
		message->flags = out->flags;
		if (!(completion.flags & IORING_CQE_F_MORE))
			break;
	}
	return err ? err : received;
}

long lab_ring_setsockopt(struct lab_ring *ring, int socket, int level, int name,
			 const void *value, unsigned int length)
{
	/* Fields that the headers of Debian 12 do not name: level and optname are the two
	 * halves of addr, optlen is file_index and optval is addr3.
	 */
	struct io_uring_sqe entry = {
		.opcode = IORING_OP_URING_CMD,
		.fd = socket,
		.off = SOCKET_SETSOCKOPT,
		.addr = (uint64_t)(uint32_t)name << 32 | (uint32_t)level,
		.file_index = length,
		.addr3 = (uintptr_t)value,
	};
	long err = ring_submit(ring, &entry);

	return err ? err : ring_result(ring);
}
