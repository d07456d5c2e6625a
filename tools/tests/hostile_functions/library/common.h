/* What hostile functions share: how they tell what they reached, and how they find others. */
#pragma once
#include <cerrno>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dirent.h>
#include <fcntl.h>
#include <string>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <utility>
#include <vector>

#define FUNCTION(name) extern "C" uint32_t name(void *input, uint32_t bytes, void *output)
#define UNUSED (void)input, (void)bytes, (void)output

/* Nothing that was started lives longer, whatever becomes of the test. */
constexpr unsigned LONGEST_LIFE_SECONDS = 60;

/* Room in an output. */
constexpr size_t ROOM = 4000;

/* What a function tried. Its answer begins with "did" if anything of it worked, else with
 * "refused". */
class Tried {
  public:
    /* Of one attempt that has worked unless `error` is an errno. */
    void tell(int error, const char *format, ...) __attribute__((format(printf, 3, 4))) {
        char text[256];
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(text, sizeof text, format, arguments);
        va_end(arguments);
        std::string &list = error == 0 ? done : refused;
        if (!list.empty()) list += ", ";
        list += text;
        if (error != 0) list += std::string(" (") + strerrorname_np(error) + ")";
    }

    uint32_t answer(void *output) const {
        std::string text = done.empty() ? "refused: " + refused : "did: " + done;
        if (done.empty() && refused.empty()) text = "refused: nobody and nothing is to be seen";
        size_t length = text.size() < ROOM ? text.size() : ROOM;
        memcpy(output, text.data(), length);
        return static_cast<uint32_t>(length);
    }

  private:
    std::string done, refused;
};

/* The beginning of a file; empty if it cannot be read, and errno says why. */
inline std::string read_file(const std::string &path) {
    char text[4096];
    int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) return {};
    ssize_t length = read(file, text, sizeof text);
    int error = errno;
    close(file);
    errno = length == 0 ? ENODATA : error;
    return std::string(text, length > 0 ? static_cast<size_t>(length) : 0);
}

inline std::string in_proc(pid_t process, const char *file) {
    return "/proc/" + std::to_string(process) + "/" + file;
}

inline std::string name_of(pid_t process) {
    std::string name = read_file(in_proc(process, "comm"));
    if (!name.empty() && name.back() == '\n') name.pop_back();
    return name;
}

/* Processes whose names `wanted` accepts, except this one. */
template <typename Wanted> std::vector<std::pair<pid_t, std::string>> processes(Wanted wanted) {
    std::vector<std::pair<pid_t, std::string>> found;
    DIR *directory = opendir("/proc");
    if (directory == nullptr) return found;
    while (dirent *entry = readdir(directory)) {
        pid_t process = atoi(entry->d_name);
        if (process <= 0 || process == getpid()) continue;
        std::string name = name_of(process);
        if (wanted(process, name)) found.emplace_back(process, name);
    }
    closedir(directory);
    return found;
}

/* Both managers, and whoever has started this process. */
inline std::vector<std::pair<pid_t, std::string>> managers() {
    return processes([](pid_t process, const std::string &name) {
        return name.rfind("executor_manag", 0) == 0 || name.rfind("resource_manag", 0) == 0 ||
               process == getppid();
    });
}

/* Executors of others, and what else runs that program. */
inline std::vector<std::pair<pid_t, std::string>> tenants() {
    return processes([](pid_t, const std::string &name) {
        return name.rfind("executor", 0) == 0 && name.rfind("executor_manag", 0) != 0;
    });
}

/* A socket that `act`, which is bind or connect, was told an abstract name for; -1 on failure. */
template <typename Act> int abstract_socket(const std::string &name, Act act) {
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    if (name.size() >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(address.sun_path + 1, name.data(), name.size());
    const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
    int file = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (file < 0) return -1;
    if (act(file, reinterpret_cast<sockaddr *>(&address), length) == 0) return file;
    int error = errno;
    close(file);
    errno = error;
    return -1;
}
