// Files by the system's calls: open, fstat, mmap, read, rename.
#include "base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/descriptors.h"
#include "base/signals.h"

namespace stief {

namespace {

[[noreturn]] void fail_errno(const char* what, const std::string& path) {
    fail("cannot %s %s: %s", what, path.c_str(), std::strerror(errno));
}

// A file descriptor, closed once.
struct Descriptor {
    int fd;
    ~Descriptor() {
        if (fd > STDIN_FILENO) close(fd);
    }
};

FileId id_of(const struct stat& status) {
    return {uint64_t(status.st_dev), uint64_t(status.st_ino)};
}

int64_t modified_at(const struct stat& status) {
#ifdef __APPLE__
    const timespec& at = status.st_mtimespec;
#else
    const timespec& at = status.st_mtim;
#endif
    return int64_t(at.tv_sec) * 1'000'000'000 + at.tv_nsec;
}

}  // namespace

MappedFile::MappedFile(const std::string& path_) : path(path_) {
    // Without O_NONBLOCK the opening of a pipe that nobody writes to would wait for ever.
    Descriptor file{open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    if (file.fd < 0) fail_errno("open", path);
    struct stat status;
    if (fstat(file.fd, &status) != 0) fail_errno("open", path);
    check(!S_ISDIR(status.st_mode), "cannot read %s: it is a folder", path.c_str());
    check(S_ISREG(status.st_mode), "cannot read %s: it is not a regular file", path.c_str());
    id = id_of(status), modified = modified_at(status);
    if (status.st_size == 0) return;          // mmap refuses a length of 0
    void* bytes = mmap(nullptr, size_t(status.st_size), PROT_READ, MAP_SHARED, file.fd, 0);
    if (bytes == MAP_FAILED) fail_errno("map", path);
    data = static_cast<const unsigned char*>(bytes);
    size = size_t(status.st_size);
    remember_mapping(data, size, path);
}

MappedFile::~MappedFile() {
    if (!data) return;
    forget_mapping(data);
    munmap(const_cast<unsigned char*>(data), size);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data(std::exchange(other.data, nullptr)),
      size(std::exchange(other.size, 0)),
      path(std::move(other.path)),
      id(other.id),
      modified(other.modified) {}

void MappedFile::check_unchanged() const {
    struct stat now;
    if (stat(path.c_str(), &now) != 0 || id_of(now) != id) return;
    check(size_t(now.st_size) == size && modified_at(now) == modified,
          "%s was written to while it was being read: the result is of no one file; run again",
          path.c_str());
}

bool file_exists(const std::string& path) {
    struct stat status;
    return stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode);
}

bool folder_exists(const std::string& path) {
    struct stat status;
    return stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

std::optional<FileId> file_id(const std::string& path) {
    struct stat status;
    if (stat(path.c_str(), &status) != 0) return {};
    return id_of(status);
}

std::string join(const std::string& folder, const std::string& name) {
    if (folder.empty() || folder.back() == '/') return folder + name;
    return folder + "/" + name;
}

std::string read_text(const std::string& path, size_t max_bytes) {
    bool standard = path == "-";
    const std::string name = standard ? "standard input" : path;
    Descriptor file{standard ? STDIN_FILENO : open(path.c_str(), O_RDONLY | O_CLOEXEC)};
    if (file.fd < 0) fail_errno("open", name);
    struct stat status;
    if (fstat(file.fd, &status) != 0) fail_errno("open", name);
    check(!S_ISDIR(status.st_mode), "cannot read %s: it is a folder", name.c_str());

    // A regular file tells its size, a pipe does not, and /proc tells 0: read until nothing comes,
    // with one byte more than expected so that the end is seen without growing.
    size_t expected = S_ISREG(status.st_mode) ? size_t(status.st_size) : 0;
    std::string text(std::min(std::max(expected, size_t(65535)), max_bytes) + 1, '\0');
    size_t length = 0;
    while (size_t got = read_some(file.fd, &text[length], text.size() - length, name)) {
        length += got;
        check(length <= max_bytes, "%s is larger than %zu bytes; give a part of it", name.c_str(),
              max_bytes);
        if (length == text.size()) text.resize(std::min(2 * length, max_bytes + 1));
    }
    text.resize(length);
    return text;
}

// The file itself, where path is a link to one: renaming onto a link would replace the link.
static std::string behind_links(const std::string& path) {
    char* real = realpath(path.c_str(), nullptr);
    std::string result = real ? real : path;
    std::free(real);
    return result;
}

// A pipe or a device is written as it is: renaming onto /dev/null would replace the device.
AtomicFile::AtomicFile(const std::string& path_) : path(behind_links(path_)) {
    struct stat status;
    bool exists = stat(path.c_str(), &status) == 0;
    check(!exists || !S_ISDIR(status.st_mode), "cannot write %s: it is a folder", path.c_str());
    if (exists && !S_ISREG(status.st_mode)) {
        file = std::fopen(path.c_str(), "wb");
        if (!file) fail_errno("write", path);
        return;
    }
    static std::atomic<unsigned> serial{0};
    std::string folder = path.substr(0, path.find_last_of('/') + 1);   // with its slash; or ""
    int fd = -1;
    for (int attempt = 0; fd < 0 && attempt < 100; attempt++) {
        temporary = folder + format(".stief-%d-%u.tmp", int(getpid()), serial++);
        forget_temporary(std::exchange(place, remember_temporary(temporary)));
        fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd < 0 && errno != EEXIST) break;  // EEXIST: left behind by a process that was killed
    }
    if (fd < 0) {
        int reason = errno;
        forget_temporary(place);
        errno = reason;
        fail_errno("write", path);
    }
    if (exists && fchmod(fd, status.st_mode & 0777) != 0) errno = 0;  // rights are a courtesy
    file = fdopen(fd, "wb");
    if (!file) {
        int reason = errno;
        close(fd);
        unlink(temporary.c_str());
        forget_temporary(place);
        errno = reason;
        fail_errno("write", path);
    }
}

AtomicFile::~AtomicFile() {
    if (file) std::fclose(file);
    if (file && !temporary.empty()) unlink(temporary.c_str());
    forget_temporary(place);
}

void AtomicFile::write(const void* bytes, size_t size) {
    assert(file);
    if (size > 0 && std::fwrite(bytes, 1, size, file) != size) fail_errno("write", path);
}

void AtomicFile::commit() {
    assert(file);
    if (std::fflush(file) != 0) fail_errno("write", path);
    if (!temporary.empty()) {
        if (fsync(fileno(file)) != 0) fail_errno("write", path);
        if (std::rename(temporary.c_str(), path.c_str()) != 0) fail_errno("write", path);
        temporary.clear();
    }
    if (std::fclose(std::exchange(file, nullptr)) != 0) fail_errno("write", path);
}

}  // namespace stief
