// SPDX-License-Identifier: MIT
/* key NAME: prints the number of the key with this name. */
#include <err.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <linux/genetlink.h>
#include <linux/netlink.h>
#include <linux/traits_netlink.h>

union message {
    struct nlmsghdr  header;
    char             bytes[8192];
};

static struct nlattr *
first_attribute(union message *m)
{
    return (struct nlattr *) (m->bytes + NLMSG_HDRLEN + GENL_HDRLEN);
}

/* Send a request with one attribute, a string.
   The reply takes its place. */

static void
ask(int fd, union message *m, uint16_t family, uint8_t command,
    uint8_t version, uint16_t type, const char *text)
{
    struct genlmsghdr  *genl = NLMSG_DATA(&m->header);
    struct nlattr      *attr = first_attribute(m);
    struct nlmsgerr    *error = NLMSG_DATA(&m->header);
    size_t             size = strlen(text) + 1;
    ssize_t            n;

    memset(m, 0, sizeof(*m));
    attr->nla_type = type;
    attr->nla_len = NLA_HDRLEN + size;
    memcpy((char *) attr + NLA_HDRLEN, text, size);
    genl->cmd = command;
    genl->version = version;
    m->header.nlmsg_type = family;
    m->header.nlmsg_flags = NLM_F_REQUEST;
    m->header.nlmsg_len = NLMSG_LENGTH(GENL_HDRLEN)
                          + NLA_ALIGN(attr->nla_len);

    if (send(fd, m, m->header.nlmsg_len, 0) == -1)
        err(EXIT_FAILURE, "send");
    n = recv(fd, m, sizeof(*m), 0);
    if (n == -1)
        err(EXIT_FAILURE, "recv");
    if (!NLMSG_OK(&m->header, n))
        errx(EXIT_FAILURE, "the reply is cut short");
    if (m->header.nlmsg_type == NLMSG_ERROR) {
        errno = -error->error;
        err(EXIT_FAILURE, "%s '%s'",
            family == GENL_ID_CTRL ? "netlink family" : "key", text);
    }
}

/* Copy the value of an attribute of the reply. */

static void
get(union message *m, uint16_t type, void *value, size_t size)
{
    char           *end = m->bytes + m->header.nlmsg_len;
    struct nlattr  *attr = first_attribute(m);

    while (end - (char *) attr >= NLA_HDRLEN
           && attr->nla_len >= NLA_HDRLEN
           && attr->nla_len <= end - (char *) attr) {
        if (attr->nla_type == type
            && attr->nla_len == NLA_HDRLEN + size) {
            memcpy(value, (char *) attr + NLA_HDRLEN, size);
            return;
        }
        attr = (void *) ((char *) attr + NLA_ALIGN(attr->nla_len));
    }
    errx(EXIT_FAILURE, "the reply has no attribute %d", type);
}

int
main(int argc, char *argv[])
{
    static union message  m;
    uint16_t              family;
    uint32_t              id;
    int                   fd;

    if (argc != 2 || strlen(argv[1]) > TRAITS_NAME_MAX)
        errx(EXIT_FAILURE, "usage: key NAME");

    fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_GENERIC);
    if (fd == -1)
        err(EXIT_FAILURE, "socket");

    ask(fd, &m, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, 1,
        CTRL_ATTR_FAMILY_NAME, TRAITS_FAMILY_NAME);
    get(&m, CTRL_ATTR_FAMILY_ID, &family, sizeof(family));

    ask(fd, &m, family, TRAITS_CMD_KEY_GET, TRAITS_FAMILY_VERSION,
        TRAITS_A_KEY_NAME, argv[1]);
    get(&m, TRAITS_A_KEY_ID, &id, sizeof(id));

    printf("%u\n", id);
    exit(EXIT_SUCCESS);
}
