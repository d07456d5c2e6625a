/* Functions that reach for what is not theirs: managers, other tenants, the node. */
#include "common.h"

#include <arpa/inet.h>
#include <csignal>
#include <netinet/in.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/wait.h>

/* A file and an abstract socket of the tenant that `settle` runs in. */
static const char TENANT_FILE[] = "/tmp/rfaas-hostile-tenant";
static const char TENANT_SOCKET[] = "rfaas-hostile-tenant";

static int connect_to(const std::string &name) {
    int file = abstract_socket(name, connect);
    if (file < 0) return errno;
    close(file);
    return 0;
}

/* Behaves: makes what others are to reach for. */
FUNCTION(settle) {
    UNUSED;
    Tried tried;
    int file = open(TENANT_FILE, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    tried.tell(file >= 0 && write(file, "mine", 4) == 4 ? 0 : errno, "a file");
    int local = abstract_socket(TENANT_SOCKET, bind);
    bool listens = local >= 0 && listen(local, 8) == 0;
    tried.tell(listens ? 0 : errno, "a socket");
    return tried.answer(output);
}

FUNCTION(kill_parent) {
    UNUSED;
    Tried tried;
    const pid_t parent = getppid();
    const std::string name = name_of(parent);
    int error = kill(parent, SIGKILL) == 0 ? 0 : errno;
    /* Process 1 of a namespace ignores it. */
    for (int waited = 0; error == 0 && getppid() == parent && waited < 200; waited++) usleep(1000);
    if (error == 0 && getppid() == parent) error = EALREADY;
    tried.tell(error, "killed %s", name.c_str());
    return tried.answer(output);
}

/* Everything that it may signal. Only where process 1 is the test or a guardian: elsewhere this
 * would end what the machine runs. */
FUNCTION(kill_everything) {
    UNUSED;
    Tried tried;
    const std::string first = name_of(1);
    if (first != "hostile_functio" && first != "guardian") {
        tried.tell(ECANCELED, "this is no namespace of the test, but that of %s", first.c_str());
        return tried.answer(output);
    }
    auto before = processes([](pid_t, const std::string &) { return true; });
    int error = kill(-1, SIGKILL) == 0 ? 0 : errno;
    usleep(100000);
    for (auto &[process, name] : before) {
        if (process == 1) continue;
        bool gone = kill(process, 0) != 0 && errno == ESRCH;
        if (gone || read_file(in_proc(process, "stat")).find(") Z") != std::string::npos) {
            tried.tell(0, "killed %s", name.c_str());
        } else {
            tried.tell(error == 0 ? EALREADY : error, "%s", name.c_str());
        }
    }
    return tried.answer(output);
}

using Processes = std::vector<std::pair<pid_t, std::string>>;

/* The tracer is this thread: its end lets go. */
static uint32_t trace(const Processes &of, void *output) {
    Tried tried;
    for (auto &[process, name] : of) {
        int error = ptrace(PTRACE_SEIZE, process, nullptr, nullptr) == 0 ? 0 : errno;
        tried.tell(error, "traced %s", name.c_str());
        if (error != 0) continue;
        int status;
        ptrace(PTRACE_INTERRUPT, process, nullptr, nullptr);
        if (waitpid(process, &status, __WALL) == process) {
            ptrace(PTRACE_DETACH, process, nullptr, nullptr);
        }
    }
    return tried.answer(output);
}

/* Reads its memory and writes back what it has read. */
static uint32_t memory(const Processes &of, void *output) {
    Tried tried;
    for (auto &[process, name] : of) {
        unsigned long begin = 0;
        if (FILE *maps = fopen(in_proc(process, "maps").c_str(), "re")) {
            char line[512], rights[8];
            while (fgets(line, sizeof line, maps)) {
                unsigned long from;
                if (sscanf(line, "%lx-%*x %4s", &from, rights) != 2 || rights[1] != 'w') continue;
                begin = from;
                break;
            }
            fclose(maps);
        }
        char some[64];
        const ssize_t all = sizeof some;
        const auto at = static_cast<off_t>(begin);
        int file = open(in_proc(process, "mem").c_str(), O_RDWR | O_CLOEXEC);
        bool reached = file >= 0 && pread(file, some, sizeof some, at) == all &&
                       pwrite(file, some, sizeof some, at) == all;
        tried.tell(reached ? 0 : errno, "read and wrote memory of %s", name.c_str());
        if (file >= 0) close(file);
    }
    return tried.answer(output);
}

/* A child that traces its executor, and so is told of its end before anybody else. That it traces is
 * no harm: it is of the same lease. */
FUNCTION(leave_a_tracer) {
    UNUSED;
    Tried tried;
    int ready[2];
    char byte = 0;
    if (pipe(ready) != 0) return 0;
    const pid_t executor = getpid(), child = fork();
    if (child == 0) {
        alarm(LONGEST_LIFE_SECONDS);
        setsid();
        byte = static_cast<char>(ptrace(PTRACE_SEIZE, executor, nullptr, nullptr) == 0 ? 0 : errno);
        if (write(ready[1], &byte, 1) != 1) _exit(1);
        for (;;) pause();
    }
    close(ready[1]);
    if (child < 0 || read(ready[0], &byte, 1) != 1) byte = ECHILD;
    tried.tell(byte, "traces its executor");
    return tried.answer(output);
}

FUNCTION(trace_managers) {
    UNUSED;
    return trace(managers(), output);
}

FUNCTION(trace_tenants) {
    UNUSED;
    return trace(tenants(), output);
}

FUNCTION(memory_of_managers) {
    UNUSED;
    return memory(managers(), output);
}

FUNCTION(memory_of_tenants) {
    UNUSED;
    return memory(tenants(), output);
}

/* From environments, command lines, and the files whose names are its input, one a line. */
FUNCTION(read_secret) {
    Tried tried;
    for (auto &[process, name] : managers()) {
        for (const char *file : {"environ", "cmdline"}) {
            /* Of its parent, which is no manager in a sandbox, that is its own. */
            if (process == 1 && file[0] == 'c') continue;
            std::string text = read_file(in_proc(process, file));
            if (text.empty()) tried.tell(errno, "%s of %s", file, name.c_str());
            else tried.tell(0, "read %s of %s", file, name.c_str());
        }
    }
    const std::string names(static_cast<char *>(input), bytes);
    size_t begin = 0, end;
    while ((end = names.find('\n', begin)) != std::string::npos) {
        const std::string path = names.substr(begin, end - begin);
        begin = end + 1;
        std::string text = read_file(path);
        const char *last = strrchr(path.c_str(), '/');
        if (text.empty()) tried.tell(errno, "%s", last ? last + 1 : path.c_str());
        else tried.tell(0, "read %s", last ? last + 1 : path.c_str());
    }
    return tried.answer(output);
}

FUNCTION(file_of_tenant) {
    UNUSED;
    Tried tried;
    std::vector<std::string> roots = {""};
    for (auto &[process, name] : tenants()) roots.push_back(in_proc(process, "root"));
    for (auto &root : roots) {
        int file = open((root + TENANT_FILE).c_str(), O_RDWR | O_CLOEXEC);
        tried.tell(file >= 0 ? 0 : errno, "opened it%s", root.empty() ? "" : " in /proc");
        if (file >= 0) close(file);
    }
    return tried.answer(output);
}

/* The file that this library was loaded from, which other executors may have loaded too. */
FUNCTION(change_library) {
    UNUSED;
    Tried tried;
    std::string name;
    if (FILE *maps = fopen("/proc/self/maps", "re")) {
        const auto here = reinterpret_cast<unsigned long>(&change_library);
        char line[512], path[256];
        while (fgets(line, sizeof line, maps)) {
            unsigned long begin, end;
            const int read = sscanf(line, "%lx-%lx %*s %*s %*s %*s %255[^\n]", &begin, &end, path);
            if (read == 3 && begin <= here && here < end) name = path;
        }
        fclose(maps);
    }
    for (int file = 3; file < 1024; file++) {
        char target[256];
        const std::string link = "/proc/self/fd/" + std::to_string(file);
        const ssize_t length = readlink(link.c_str(), target, sizeof target);
        if (length <= 0 || name != std::string(target, static_cast<size_t>(length))) continue;
        tried.tell(pwrite(file, "x", 1, 0) == 1 ? 0 : errno, "wrote to it");
        tried.tell(ftruncate(file, 1) == 0 ? 0 : errno, "cut it");
        int again = open(link.c_str(), O_RDWR | O_CLOEXEC);
        void *memory = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, again, 0);
        tried.tell(memory != MAP_FAILED ? 0 : errno, "mapped it");
        if (again >= 0) close(again);
    }
    return tried.answer(output);
}

/* Those of a tenant and of another program of the node, and all that the embedded device of the
 * test's own cluster listens at. */
FUNCTION(abstract_sockets) {
    UNUSED;
    Tried tried;
    for (const char *name : {TENANT_SOCKET, "rfaas-hostile-other"}) {
        tried.tell(connect_to(name), "connected to %s", name);
    }
    int reached = 0, error = ENOENT;
    if (FILE *table = fopen("/proc/net/unix", "re")) {
        char line[512], name[256];
        while (fgets(line, sizeof line, table)) {
            if (sscanf(line, "%*s %*s %*s %*s %*s %*s %*s @%255s", name) != 1) continue;
            if (strncmp(name, "rdmalib-shm/127.71.", 19) != 0) continue;
            int now = connect_to(name);
            if (now == 0) reached++;
            else error = now;
        }
        fclose(table);
    }
    if (reached > 0) tried.tell(0, "connected to %d sockets of the embedded device", reached);
    else tried.tell(error, "the embedded device's");
    return tried.answer(output);
}

/* The port is its input, as text. */
FUNCTION(http_interface) {
    Tried tried;
    const std::string port(static_cast<char *>(input), bytes);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(atoi(port.c_str())));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int tcp = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (tcp < 0 || connect(tcp, reinterpret_cast<sockaddr *>(&address), sizeof address) != 0) {
        tried.tell(errno, "a connection");
    } else {
        static const char ASK[] =
            "GET /leases HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        char answer[64];
        ssize_t length = write(tcp, ASK, strlen(ASK)) > 0 ? read(tcp, answer, sizeof answer) : -1;
        tried.tell(length > 0 ? 0 : errno, "was answered");
    }
    if (tcp >= 0) close(tcp);
    return tried.answer(output);
}

FUNCTION(change_limits) {
    UNUSED;
    Tried tried;
    struct rlimit limit;
    const std::pair<__rlimit_resource, const char *> kinds[] = {
        {RLIMIT_NOFILE, "files"}, {RLIMIT_NPROC, "processes"}, {RLIMIT_DATA, "memory"},
        {RLIMIT_FSIZE, "file size"}, {RLIMIT_CORE, "core"},
    };
    for (auto [kind, name] : kinds) {
        if (getrlimit(kind, &limit) != 0) continue;
        if (limit.rlim_max == RLIM_INFINITY) {
            tried.tell(0, "has no limit of %s", name);
            continue;
        }
        limit.rlim_max = limit.rlim_cur = limit.rlim_max + 1;
        int error = setrlimit(kind, &limit) == 0 ? 0 : errno;
        tried.tell(error, "raised %s", name);
    }
    for (auto &[process, name] : managers()) {
        if (process == 1) continue; /* the guardian, which is of the same lease */
        struct rlimit theirs;
        int error = prlimit(process, RLIMIT_NOFILE, nullptr, &theirs) == 0 &&
                    prlimit(process, RLIMIT_NOFILE, &theirs, nullptr) == 0 ? 0 : errno;
        tried.tell(error, "set limits of %s", name.c_str());
    }
    return tried.answer(output);
}

FUNCTION(change_priorities) {
    UNUSED;
    Tried tried;
    int error = setpriority(PRIO_PROCESS, 0, -20) == 0 ? 0 : errno;
    tried.tell(error, "nice -20");
    if (error == 0) setpriority(PRIO_PROCESS, 0, 0);
    sched_param first = {1}, normal = {0};
    error = sched_setscheduler(0, SCHED_FIFO, &first) == 0 ? 0 : errno;
    tried.tell(error, "real time");
    if (error == 0) sched_setscheduler(0, SCHED_OTHER, &normal);
    return tried.answer(output);
}

/* To a processor that was not its own. */
FUNCTION(change_affinity) {
    UNUSED;
    Tried tried;
    cpu_set_t before, all;
    sched_getaffinity(0, sizeof before, &before);
    CPU_ZERO(&all);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) CPU_SET(cpu, &all);
    int error = sched_setaffinity(0, sizeof all, &all) == 0 ? 0 : errno;
    sched_getaffinity(0, sizeof all, &all);
    if (error == 0 && CPU_COUNT(&all) <= CPU_COUNT(&before)) error = EALREADY;
    tried.tell(error, "runs on %d processors, before on %d", CPU_COUNT(&all), CPU_COUNT(&before));
    return tried.answer(output);
}
