// Both ends of a vsock connection, for hack/kvm-test: busybox knows neither vsock nor Unix sockets.
//
//   vsock-peer guest-echo PORT         in the guest: echoes what the first connection to PORT sends, until its end
//   vsock-peer guest-send PORT         in the guest: sends stdin to PORT of the host and prints what comes back
//   vsock-peer host-echo SOCKET        on the host: echoes what the first connection to SOCKET sends, until its end
//   vsock-peer host-send SOCKET PORT   on the host: sends stdin to PORT of the guest behind SOCKET and prints what comes back
#include <linux/vm_sockets.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void write_all(int to, const char *bytes, ssize_t count) {
    while (count > 0) {
        ssize_t written = write(to, bytes, count);
        if (written <= 0) fail("write");
        bytes += written;
        count -= written;
    }
}

static void echo(int listener) {
    if (listen(listener, 1) != 0) fail("listen");
    int peer = accept(listener, NULL, NULL);
    if (peer < 0) fail("accept");
    char buffer[65536];
    ssize_t count;
    while ((count = read(peer, buffer, sizeof buffer)) > 0) write_all(peer, buffer, count);
    if (count < 0) fail("read");
}

// Sends and receives at the same time: an echo stops reading when nobody reads what it writes.
static void exchange(int peer) {
    struct pollfd polled[2] = {{.fd = 0, .events = POLLIN}, {.fd = peer, .events = POLLIN}};
    char buffer[16384];
    for (;;) {
        if (poll(polled, 2, -1) < 0) fail("poll");
        if (polled[1].revents) {
            ssize_t count = read(peer, buffer, sizeof buffer);
            if (count < 0) fail("read");
            if (count == 0) return;
            write_all(1, buffer, count);
        } else if (polled[0].revents) {
            ssize_t count = read(0, buffer, sizeof buffer);
            if (count > 0) {
                write_all(peer, buffer, count);
            } else {
                shutdown(peer, SHUT_WR);
                polled[0].fd = -1;
            }
        }
    }
}

int main(int count, char **words) {
    if (count < 3) return 2;
    if (strncmp(words[1], "guest-", 6) == 0) {
        int sends = strcmp(words[1], "guest-send") == 0;
        struct sockaddr_vm address = {
            .svm_family = AF_VSOCK, .svm_port = atoi(words[2]), .svm_cid = sends ? VMADDR_CID_HOST : VMADDR_CID_ANY};
        int peer = socket(AF_VSOCK, SOCK_STREAM, 0);
        if (peer < 0) fail("socket");
        if (sends) {
            if (connect(peer, (struct sockaddr *)&address, sizeof address) != 0) fail("connect");
            exchange(peer);
        } else {
            if (bind(peer, (struct sockaddr *)&address, sizeof address) != 0) fail("bind");
            echo(peer);
        }
        return 0;
    }
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, words[2], sizeof address.sun_path - 1);
    int peer = socket(AF_UNIX, SOCK_STREAM, 0);
    if (peer < 0) fail("socket");
    if (strcmp(words[1], "host-echo") == 0) {
        if (bind(peer, (struct sockaddr *)&address, sizeof address) != 0) fail("bind");
        echo(peer);
        return 0;
    }
    if (count < 4) return 2;
    if (connect(peer, (struct sockaddr *)&address, sizeof address) != 0) fail("connect");
    dprintf(peer, "CONNECT %s\n", words[3]);
    // The answer is a line; what follows it is the guest's.
    char byte, line[64] = "";
    for (size_t at = 0; at < sizeof line - 1 && read(peer, &byte, 1) == 1 && byte != '\n'; at++) line[at] = byte;
    if (strncmp(line, "OK ", 3) != 0) {
        fprintf(stderr, "refused: '%s'\n", line);
        return 1;
    }
    exchange(peer);
    return 0;
}
