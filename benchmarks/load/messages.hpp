// The bodies of the requests, framed once at the start. Takes the bodies file; leaves the bytes to write for the n-th
// request, with unique ids put in. Used by both connection kinds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace load {

// Reads records of uint32 little-endian length + bytes; raises UsageError for a file that is not such.
std::vector<std::string> read_bodies(const std::string& path);

// Unique numbers of one thread: start + index * stride.
struct Numbering {
    uint64_t start = 0;
    uint64_t stride = 1;
};

class Messages {
public:
    // `prefix_of` gives the bytes that go before a body of that length: an HTTP head or a gRPC frame header.
    Messages(const std::vector<std::string>& bodies, const std::string& marker,
             const std::function<std::string(size_t body_bytes)>& prefix_of);

    size_t size() const { return messages_.size(); }
    size_t num_markers(size_t index) const { return messages_[index].marker_offsets.size(); }

    // The bytes of message `index`; its markers become the numbers from `first_number` on. The view lies in this
    // object, or in `scratch` where there are markers.
    std::string_view render(size_t index, uint64_t first_number, const Numbering& numbering,
                            std::string& scratch) const;

private:
    struct Message {
        std::string bytes;
        std::vector<size_t> marker_offsets;
    };

    std::vector<Message> messages_;
    size_t marker_width_;
};

}  // namespace load
