// Reads the bodies file and frames each record once; puts unique numbers over the markers.
#include "messages.hpp"

#include <fstream>
#include <iterator>

#include "options.hpp"

namespace load {

namespace {

constexpr size_t kLengthBytes = 4;

size_t length_at(std::string_view record) {
    size_t length = 0;
    for (size_t i = kLengthBytes; i-- > 0;) length = length << 8 | static_cast<unsigned char>(record[i]);
    return length;
}

}  // namespace

std::vector<std::string> read_bodies(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw UsageError("--bodies is '" + path + "', which cannot be read");
    const std::string content{std::istreambuf_iterator<char>(file), {}};
    std::vector<std::string> bodies;
    std::string_view rest = content;
    while (rest.size() >= kLengthBytes && rest.size() - kLengthBytes >= length_at(rest)) {
        bodies.emplace_back(rest.substr(kLengthBytes, length_at(rest)));
        rest.remove_prefix(kLengthBytes + length_at(rest));
    }
    if (!rest.empty() || bodies.empty()) {
        throw UsageError("--bodies is '" + path + "', cut off after " + std::to_string(bodies.size()) +
                         " records; allowed one or more records of uint32 little-endian length + bytes");
    }
    return bodies;
}

Messages::Messages(const std::vector<std::string>& bodies, const std::string& marker,
                   const std::function<std::string(size_t)>& prefix_of)
    : marker_width_(marker.size()) {
    messages_.reserve(bodies.size());
    for (const std::string& body : bodies) {
        const std::string prefix = prefix_of(body.size());
        Message message{prefix + body, {}};
        if (!marker.empty()) {
            size_t found = body.find(marker);
            for (; found != std::string::npos; found = body.find(marker, found + marker.size())) {
                message.marker_offsets.push_back(prefix.size() + found);
            }
        }
        messages_.push_back(std::move(message));
    }
}

std::string_view Messages::render(size_t index, uint64_t first_number, const Numbering& numbering,
                                  std::string& scratch) const {
    const Message& message = messages_[index];
    if (message.marker_offsets.empty()) return message.bytes;
    scratch = message.bytes;
    uint64_t number = numbering.start + first_number * numbering.stride;
    for (const size_t offset : message.marker_offsets) {
        uint64_t rest = number;
        for (size_t digit = marker_width_; digit-- > 0; rest /= 10) {
            scratch[offset + digit] = static_cast<char>('0' + rest % 10);
        }
        number += numbering.stride;
    }
    return scratch;
}

}  // namespace load
