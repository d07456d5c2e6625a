// What an RDMA device costs at least: the calls that a program makes that does nothing else.
//
//   verbs ping ADDRESS PAYLOAD INLINE WAIT CPU CPU
//     For each line on standard input, a number, so many writes with immediate data of PAYLOAD bytes
//     there and back between two processes on the device of ADDRESS, and a line with the nanoseconds
//     of each. Payloads up to INLINE bytes go with their request. WAIT: hot, both poll; warm, both
//     sleep until there is a completion. The CPUs of the end that asks and of the one that answers.
//   verbs cold ADDRESS
//     For each line on standard input, forks a child that exits at once, and forks one that executes
//     this program again to connect to a third process on the device of ADDRESS, and prints the
//     nanoseconds of both until the child is reaped.
//   verbs connect ADDRESS PORT
//     Connects and exits: the second child.
//
// A write with immediate data takes a receive of its target, which has to post another one: so do
// both ends here, as an executor and its caller must.
#define _GNU_SOURCE
#include <netinet/in.h>
#include <rdma/rdma_cma.h>
#include <rdma/rdma_verbs.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    RECEIVES = 8,    // posted at a time; one message is under way
    SENDS = 32,      // depth of the send queue
    SIGNALLED = 16,  // every so many sends one is waited for, which makes room in the queue
};

struct place {
    uint64_t address;
    uint32_t key;
};

struct end {
    struct rdma_cm_id *id;
    struct ibv_mr *region;
    char *memory;  // what arrives, and behind it what is sent
    struct place peers;
    unsigned sent;
};

static size_t payload;
static size_t most_inline;
static int sleeps;

static void check(int failed, const char *what) {
    if (failed) {
        perror(what);
        _exit(1);
    }
}

static long long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void stay_on(const char *cpu) {
    cpu_set_t only;
    CPU_ZERO(&only);
    CPU_SET(atoi(cpu), &only);
    sched_setaffinity(0, sizeof only, &only);  // without permission it stays where it is
}

static struct ibv_qp_init_attr attributes(void) {
    return (struct ibv_qp_init_attr){
        .cap = {.max_send_wr = SENDS,
                .max_recv_wr = RECEIVES,
                .max_send_sge = 1,
                .max_recv_sge = 1,
                .max_inline_data = most_inline},
        .qp_type = IBV_QPT_RC,
    };
}

// An endpoint that listens at `address`, or is to connect from there to its `port`.
static struct rdma_cm_id *endpoint(const char *address, const char *port, int listens) {
    struct rdma_addrinfo hints = {.ai_port_space = RDMA_PS_TCP, .ai_flags = RAI_NUMERICHOST}, *own, *to;
    hints.ai_flags |= RAI_PASSIVE;
    check(rdma_getaddrinfo(address, listens ? port : NULL, &hints, &own), "rdma_getaddrinfo");
    struct rdma_addrinfo *used = own;
    if (!listens) {
        hints = (struct rdma_addrinfo){.ai_port_space = RDMA_PS_TCP,
                                       .ai_src_addr = own->ai_src_addr,
                                       .ai_src_len = own->ai_src_len};
        check(rdma_getaddrinfo(address, port, &hints, &to), "rdma_getaddrinfo");
        used = to;
    }
    struct rdma_cm_id *id;
    struct ibv_qp_init_attr wanted = attributes();
    check(rdma_create_ep(&id, used, NULL, &wanted), "rdma_create_ep");
    return id;
}

static void post_receive(struct end *end) {
    check(rdma_post_recv(end->id, NULL, end->memory, 0, end->region), "rdma_post_recv");
}

static void prepare(struct end *end) {
    size_t bytes = 2 * payload + 1;
    check((end->memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096)) == NULL, "aligned_alloc");
    memset(end->memory, 1, bytes);
    check((end->region = rdma_reg_write(end->id, end->memory, bytes)) == NULL, "rdma_reg_write");
    for (int i = 0; i < RECEIVES; i++) post_receive(end);
}

static struct rdma_conn_param offer(struct end *end, struct place *place) {
    *place = (struct place){(uintptr_t)end->memory, end->region->rkey};
    return (struct rdma_conn_param){.private_data = place,
                                    .private_data_len = sizeof *place,
                                    .retry_count = 7,
                                    .rnr_retry_count = 7};
}

static void take_offer(struct end *end) {
    memcpy(&end->peers, end->id->event->param.conn.private_data, sizeof end->peers);
}

static void completed(int polled, const struct ibv_wc *completion) {
    if (polled < 0 || completion->status != IBV_WC_SUCCESS) {
        fprintf(stderr, "%s\n", polled < 0 ? "ibv_poll_cq" : ibv_wc_status_str(completion->status));
        _exit(1);
    }
}

static void send_message(struct end *end) {
    struct ibv_sge from = {(uintptr_t)end->memory + payload, payload, end->region->lkey};
    int is_signalled = ++end->sent % SIGNALLED == 0;
    struct ibv_send_wr write = {
        .sg_list = &from,
        .num_sge = 1,
        .opcode = IBV_WR_RDMA_WRITE_WITH_IMM,
        .send_flags = (is_signalled ? IBV_SEND_SIGNALED : 0) | (payload <= most_inline ? IBV_SEND_INLINE : 0),
        .wr.rdma = {end->peers.address, end->peers.key},
    }, *refused;
    check(ibv_post_send(end->id->qp, &write, &refused), "ibv_post_send");
    if (is_signalled) {
        struct ibv_wc completion;
        int polled;
        while ((polled = ibv_poll_cq(end->id->send_cq, 1, &completion)) == 0) {}
        completed(polled, &completion);
    }
}

static void await_message(struct end *end) {
    struct ibv_cq *queue = end->id->recv_cq;
    struct ibv_wc completion;
    int polled;
    while ((polled = ibv_poll_cq(queue, 1, &completion)) == 0) {
        if (!sleeps) continue;
        check(ibv_req_notify_cq(queue, 0), "ibv_req_notify_cq");
        if ((polled = ibv_poll_cq(queue, 1, &completion)) != 0) break;
        void *context;
        check(ibv_get_cq_event(end->id->recv_cq_channel, &queue, &context), "ibv_get_cq_event");
        ibv_ack_cq_events(queue, 1);
    }
    completed(polled, &completion);
    post_receive(end);
}

// Starts a child that ends with this process and tells its port, and then does its work with the endpoint that
// listens there.
static int start(const char *address, void (*work)(struct rdma_cm_id *)) {
    int told[2], port = 0;
    check(pipe(told), "pipe");
    pid_t parent = getpid(), child = fork();
    check(child < 0, "fork");
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) _exit(1);
        struct rdma_cm_id *listener = endpoint(address, "0", 1);
        check(rdma_listen(listener, 8), "rdma_listen");
        port = ntohs(rdma_get_src_port(listener));
        check(write(told[1], &port, sizeof port) != sizeof port, "write");
        work(listener);
        _exit(0);
    }
    close(told[1]);
    if (read(told[0], &port, sizeof port) != sizeof port) _exit(1);  // it has said why
    return port;
}

static const char *answering_cpu;

static void answer(struct rdma_cm_id *listener) {
    struct end end = {0};
    struct place place;
    stay_on(answering_cpu);
    check(rdma_get_request(listener, &end.id), "rdma_get_request");
    prepare(&end);
    take_offer(&end);
    struct rdma_conn_param offered = offer(&end, &place);
    check(rdma_accept(end.id, &offered), "rdma_accept");
    for (;;) {
        await_message(&end);
        send_message(&end);
    }
}

static int ping(const char *address) {
    char port[16];
    struct end end = {0};
    struct place place;
    unsigned rounds;
    snprintf(port, sizeof port, "%d", start(address, answer));
    end.id = endpoint(address, port, 0);
    prepare(&end);
    struct rdma_conn_param offered = offer(&end, &place);
    check(rdma_connect(end.id, &offered), "rdma_connect");
    take_offer(&end);
    while (scanf("%u", &rounds) == 1) {
        for (unsigned i = 0; i < rounds; i++) {
            long long begin = now_ns();
            send_message(&end);
            await_message(&end);
            printf("%lld ", now_ns() - begin);
        }
        putchar('\n');
        fflush(stdout);
    }
    return 0;
}

static void take_connections(struct rdma_cm_id *listener) {
    for (;;) {
        struct rdma_cm_id *id;
        check(rdma_get_request(listener, &id), "rdma_get_request");
        check(rdma_accept(id, NULL), "rdma_accept");
        rdma_destroy_ep(id);
    }
}

static int connect_once(const char *address, const char *port) {
    struct rdma_conn_param parameters = {.retry_count = 7};
    check(rdma_connect(endpoint(address, port, 0), &parameters), "rdma_connect");
    _exit(0);
}

static long long child_ns(char *const arguments[]) {
    long long begin = now_ns();
    pid_t child = fork();
    if (child == 0) {
        if (arguments != NULL) execv("/proc/self/exe", arguments);
        _exit(arguments != NULL);
    }
    int status;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0) exit(1);
    return now_ns() - begin;
}

static int cold(char *name, char *address) {
    char port[16];
    snprintf(port, sizeof port, "%d", start(address, take_connections));
    char *const again[] = {name, "connect", address, port, NULL};
    while (getchar() != EOF) {
        long long fork_ns = child_ns(NULL), exec_ns = child_ns(again);
        printf("%lld %lld\n", fork_ns, exec_ns);
        fflush(stdout);
    }
    return 0;
}

int main(int count, char **given) {
    if (count == 4 && strcmp(given[1], "connect") == 0) return connect_once(given[2], given[3]);
    if (count == 3 && strcmp(given[1], "cold") == 0) return cold(given[0], given[2]);
    if (count != 8 || strcmp(given[1], "ping") != 0) return 2;
    payload = strtoul(given[3], NULL, 10);
    most_inline = strtoul(given[4], NULL, 10);
    sleeps = strcmp(given[5], "warm") == 0;
    answering_cpu = given[7];
    stay_on(given[6]);
    return ping(given[2]);
}
