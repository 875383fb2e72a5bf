// SPDX-License-Identifier: MIT
/* receive PORT KEY: waits for a datagram, and prints the value that it
   has of a key, which is given by its number and has 8 bytes. */
#include <err.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <linux/traits.h>

int
main(int argc, char *argv[])
{
    int                  fd;
    char                 payload[2048];
    size_t               count;
    ssize_t              n;
    uint64_t             mask, value;
    unsigned long        key;
    struct trait         trait;
    struct cmsghdr       *cmsg;
    struct sockaddr_in6  addr = { .sin6_family = AF_INET6 };

    /* Room for one record, as one key is asked for;
       a union, for the alignment */
    union {
        struct cmsghdr   align;
        char             buf[CMSG_SPACE(sizeof(struct trait))];
    } control;

    struct iovec iov = {
        .iov_base = payload,
        .iov_len = sizeof(payload),
    };
    struct msghdr msg = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = control.buf,
        .msg_controllen = sizeof(control.buf),
    };

    if (argc != 3)
        errx(EXIT_FAILURE, "usage: receive PORT KEY");
    addr.sin6_port = htons(atoi(argv[1]));
    key = strtoul(argv[2], NULL, 10);
    if (key >= TRAITS_KEYS_MAX)
        errx(EXIT_FAILURE, "keys are 0 to %d", TRAITS_KEYS_MAX - 1);

    fd = socket(AF_INET6, SOCK_DGRAM, 0);
    if (fd == -1)
        err(EXIT_FAILURE, "socket");

    /* Before bind(), so that no datagram comes without */
    mask = UINT64_C(1) << key;
    if (setsockopt(fd, SOL_TRAITS, TRAITS_RECV, &mask, sizeof(mask))
        == -1)
        err(EXIT_FAILURE, "TRAITS_RECV");
    if (bind(fd, (struct sockaddr *) &addr, sizeof(addr)) == -1)
        err(EXIT_FAILURE, "bind");

    n = recvmsg(fd, &msg, 0);
    if (n == -1)
        err(EXIT_FAILURE, "recvmsg");
    printf("%zd bytes\n", n);
    if (msg.msg_flags & MSG_CTRUNC)
        printf("control data is lost\n");

    for (cmsg = CMSG_FIRSTHDR(&msg); cmsg != NULL;
         cmsg = CMSG_NXTHDR(&msg, cmsg)) {
        if (cmsg->cmsg_level != SOL_TRAITS
            || cmsg->cmsg_type != SCM_TRAITS)
            continue;

        count = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(trait);
        for (size_t i = 0; i < count; i++) {
            memcpy(&trait, CMSG_DATA(cmsg) + i * sizeof(trait),
                   sizeof(trait));
            if (trait.len != sizeof(value))
                errx(EXIT_FAILURE, "a value of %u bytes", trait.len);
            memcpy(&value, trait.value, sizeof(value));
            printf("key %u: %" PRIu64 "\n", trait.key, value);
        }
    }
    exit(EXIT_SUCCESS);
}
