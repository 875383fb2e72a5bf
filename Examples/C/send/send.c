// SPDX-License-Identifier: MIT
/* send ADDRESS PORT KEY VALUE: sends a datagram that has this value of
   a key, which is given by its number and has 8 bytes. */
#include <arpa/inet.h>
#include <err.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <linux/traits.h>

int
main(int argc, char *argv[])
{
    int                  fd;
    char                 payload[] = "hello";
    uint64_t             mask = 0, value;
    struct trait         trait = { .len = sizeof(value) };
    struct cmsghdr       *cmsg;
    struct sockaddr_in6  addr = { .sin6_family = AF_INET6 };

    union {
        struct cmsghdr   align;
        char             buf[CMSG_SPACE(sizeof(struct trait))];
    } control = { .buf = "" };

    struct iovec iov = {
        .iov_base = payload,
        .iov_len = strlen(payload),
    };
    struct msghdr msg = {
        .msg_name = &addr,
        .msg_namelen = sizeof(addr),
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = control.buf,
        .msg_controllen = sizeof(control.buf),
    };

    if (argc != 5
        || inet_pton(AF_INET6, argv[1], &addr.sin6_addr) != 1)
        errx(EXIT_FAILURE, "usage: send ADDRESS PORT KEY VALUE");
    addr.sin6_port = htons(atoi(argv[2]));
    trait.key = strtoul(argv[3], NULL, 10);
    value = strtoull(argv[4], NULL, 10);
    memcpy(trait.value, &value, sizeof(value));

    fd = socket(AF_INET6, SOCK_DGRAM, 0);
    if (fd == -1)
        err(EXIT_FAILURE, "socket");

    /* A kernel without packet traits would skip the control message */
    if (setsockopt(fd, SOL_TRAITS, TRAITS_RECV, &mask, sizeof(mask))
        == -1)
        err(EXIT_FAILURE, "TRAITS_RECV");

    cmsg = CMSG_FIRSTHDR(&msg);
    cmsg->cmsg_level = SOL_TRAITS;
    cmsg->cmsg_type = SCM_TRAITS;
    cmsg->cmsg_len = CMSG_LEN(sizeof(trait));
    memcpy(CMSG_DATA(cmsg), &trait, sizeof(trait));

    if (sendmsg(fd, &msg, 0) == -1)
        err(EXIT_FAILURE, "sendmsg");
    exit(EXIT_SUCCESS);
}
