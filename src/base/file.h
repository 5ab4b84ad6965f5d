// Files: mapped for reading, and written under a temporary name that becomes the real one at the
// end. Every function throws Error with the path and the system's reason.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <string_view>

namespace stief {

// Which file a name leads to: the same for two names of one file, links followed.
struct FileId {
    uint64_t device = 0, inode = 0;
    bool operator==(const FileId&) const = default;
};

// A file's bytes, mapped read-only, unmapped once. An empty file has size 0.
struct MappedFile {
    const unsigned char* data = nullptr;
    size_t size = 0;
    std::string path;
    FileId id;
    int64_t modified = 0;                                // nanoseconds, as the file system has it

    MappedFile() = default;
    explicit MappedFile(const std::string& path);
    ~MappedFile();
    MappedFile(MappedFile&& other) noexcept;

    std::string_view text() const { return {reinterpret_cast<const char*>(data), size}; }

    // Error where the file was written to since it was opened: what was read is of two files. One
    // that was replaced by another of its name is no matter, the mapping keeps the old.
    void check_unchanged() const;
};

bool file_exists(const std::string& path);               // a regular file, or a link to one
bool folder_exists(const std::string& path);
std::optional<FileId> file_id(const std::string& path);  // of what is there, links followed
std::string join(const std::string& folder, const std::string& name);

// Reads a whole file or, where path is "-", standard input. At most max_bytes; more is an error.
std::string read_text(const std::string& path, size_t max_bytes = size_t(1) << 30);

// Writes path by way of a temporary file in the same folder: either commit() is reached and path
// holds everything, or path is as it was before, also after a signal. A full disk is an Error, not
// half a file.
struct AtomicFile {
    explicit AtomicFile(const std::string& path);
    ~AtomicFile();                                       // without commit(): removes the temporary
    AtomicFile(const AtomicFile&) = delete;
    void write(const void* bytes, size_t size);
    void write(std::string_view text) { write(text.data(), text.size()); }
    void commit();                                       // flush, sync, rename

  private:
    std::string path, temporary;
    std::FILE* file = nullptr;
    int place = -1;                                      // of remember_temporary()
};

}  // namespace stief
