// HTTP/1.1 answers: Content-Length, chunked, until-close and interim (1xx) ones.
#include "http1_answer.hpp"

#include <strings.h>

#include <algorithm>
#include <charconv>

namespace load {

namespace {

constexpr size_t kMaxHeadBytes = 65'536;

bool equals_ignoring_case(std::string_view a, std::string_view b) {
    return a.size() == b.size() && strncasecmp(a.data(), b.data(), a.size()) == 0;
}

std::string_view trimmed(std::string_view text) {
    while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
    while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
    return text;
}

bool parse_unsigned(std::string_view text, int base, uint64_t& number) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, base);
    return error == std::errc{} && end == text.data() + text.size();
}

// True if the comma-separated list holds the token.
bool has_token(std::string_view list, std::string_view token) {
    while (!list.empty()) {
        const size_t comma = std::min(list.find(','), list.size());
        if (equals_ignoring_case(trimmed(list.substr(0, comma)), token)) return true;
        list.remove_prefix(std::min(comma + 1, list.size()));
    }
    return false;
}

}  // namespace

size_t Http1Answer::feed(std::string_view bytes) {
    has_bytes_ = has_bytes_ || !bytes.empty();
    size_t taken = 0;
    while (taken < bytes.size() && !is_complete() && !is_malformed()) {
        const std::string_view rest = bytes.substr(taken);
        switch (stage_) {
            case Stage::head: taken += feed_head(rest); break;
            case Stage::sized_body: taken += feed_sized(rest, Stage::complete); break;
            case Stage::chunk: taken += feed_sized(rest, Stage::chunk_end); break;
            case Stage::body_to_end: return bytes.size();
            default: taken += feed_line(rest);
        }
    }
    return taken;
}

void Http1Answer::feed_end() {
    if (stage_ == Stage::body_to_end) stage_ = Stage::complete;
}

size_t Http1Answer::feed_head(std::string_view bytes) {
    const size_t before = text_.size();
    text_ += bytes;
    const size_t end = text_.find("\r\n\r\n", before < 3 ? 0 : before - 3);
    if (end == std::string::npos) {
        if (text_.size() > kMaxHeadBytes) stage_ = Stage::malformed;
        return bytes.size();
    }
    text_.resize(end + 2);
    parse_head();
    text_.clear();
    return end + 4 - before;
}

size_t Http1Answer::feed_sized(std::string_view bytes, Stage next) {
    const uint64_t taken = std::min<uint64_t>(remaining_, bytes.size());
    remaining_ -= taken;
    if (remaining_ == 0) stage_ = next;
    return taken;
}

size_t Http1Answer::feed_line(std::string_view bytes) {
    const size_t end = bytes.find('\n');
    text_ += bytes.substr(0, end);
    if (text_.size() > kMaxHeadBytes) stage_ = Stage::malformed;
    if (end == std::string_view::npos) return bytes.size();
    if (!text_.empty() && text_.back() == '\r') text_.pop_back();
    on_line();
    text_.clear();
    return end + 1;
}

void Http1Answer::on_line() {
    if (stage_ == Stage::chunk_size) return parse_chunk_size();
    if (stage_ == Stage::chunk_end) stage_ = text_.empty() ? Stage::chunk_size : Stage::malformed;
    if (stage_ == Stage::trailers && text_.empty()) stage_ = Stage::complete;
}

void Http1Answer::parse_chunk_size() {
    const std::string_view size = std::string_view(text_).substr(0, text_.find(';'));
    if (!parse_unsigned(trimmed(size), 16, remaining_)) stage_ = Stage::malformed;
    else stage_ = remaining_ == 0 ? Stage::trailers : Stage::chunk;
}

void Http1Answer::parse_head() {
    std::string_view rest = text_;
    bool is_well_formed = true;
    for (bool is_first = true; is_well_formed && !rest.empty(); is_first = false) {
        const size_t end = rest.find("\r\n");
        const std::string_view line = rest.substr(0, end);
        is_well_formed = is_first ? parse_status_line(line) : parse_field(line);
        rest.remove_prefix(end + 2);
    }
    stage_ = is_well_formed ? stage_after_head() : Stage::malformed;
}

bool Http1Answer::parse_status_line(std::string_view line) {
    uint64_t status = 0;
    if (line.size() < 12 || line.substr(0, 7) != "HTTP/1." || !parse_unsigned(line.substr(9, 3), 10, status))
        return false;
    status_ = static_cast<int>(status);
    keeps_alive_ = line[7] != '0';
    return true;
}

bool Http1Answer::parse_field(std::string_view line) {
    const size_t colon = line.find(':');
    if (colon == std::string_view::npos) return false;
    const std::string_view name = line.substr(0, colon);
    const std::string_view value = trimmed(line.substr(colon + 1));
    if (equals_ignoring_case(name, "content-length")) return has_length_ = parse_unsigned(value, 10, remaining_);
    if (equals_ignoring_case(name, "transfer-encoding")) is_chunked_ = has_token(value, "chunked");
    if (equals_ignoring_case(name, "connection")) {
        keeps_alive_ = has_token(value, "keep-alive") || (keeps_alive_ && !has_token(value, "close"));
    }
    return true;
}

Http1Answer::Stage Http1Answer::stage_after_head() const {
    if (status_ < 200) return Stage::head;
    if (!expects_body_ || status_ == 204 || status_ == 304) return Stage::complete;
    if (is_chunked_) return Stage::chunk_size;
    if (!has_length_) return Stage::body_to_end;
    return remaining_ == 0 ? Stage::complete : Stage::sized_body;
}

}  // namespace load
