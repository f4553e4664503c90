// One HTTP/1.1 exchange at a time; the connection ends when the server, or a broken answer, says so.
#include "http1.hpp"

#include <strings.h>

#include <utility>

namespace load {

std::string http1_head(const Options& options, size_t body_bytes) {
    std::string head =
        options.method + " " + options.target.path + " HTTP/1.1\r\nHost: " + options.target.authority + "\r\n";
    bool has_content_type = false;
    for (const auto& [name, value] : options.headers) {
        head += name + ": " + value + "\r\n";
        has_content_type = has_content_type || strcasecmp(name.c_str(), "content-type") == 0;
    }
    if (body_bytes > 0 && !has_content_type) head += "Content-Type: application/json\r\n";
    const bool needs_length = body_bytes > 0 || (options.method != "GET" && options.method != "HEAD");
    if (needs_length) head += "Content-Length: " + std::to_string(body_bytes) + "\r\n";
    return head + "\r\n";
}

void Http1Connection::submit(Request& request) {
    request_ = &request;
    answer_ = Http1Answer(expects_body_);
    unsent_ = messages_.render(request.message, request.first_number, numbering_, scratch_);
    flush();  // with one request in flight there is nothing to gather
}

// HTTP/1.1 cannot take a request back: the connection goes with it.
void Http1Connection::abandon(Request&) {
    request_ = nullptr;
    close();
}

void Http1Connection::on_bytes(const char* data, size_t num_bytes) {
    // Bytes nobody asked for (a 408 before the server closes an idle connection): not trustworthy any more.
    if (request_ == nullptr) return close();
    const size_t taken = answer_.feed({data, num_bytes});
    if (answer_.is_malformed()) {
        caller_.on_protocol_error(*std::exchange(request_, nullptr));
        return close();
    }
    if (!answer_.is_complete()) return;
    const bool is_reusable = answer_.keeps_alive() && taken == num_bytes && unsent_.empty();
    finish();
    if (!is_reusable) close();
}

void Http1Connection::on_end() {
    if (request_ == nullptr) return;
    answer_.feed_end();
    if (answer_.is_complete()) return finish();
    caller_.on_cut_off(*std::exchange(request_, nullptr), answer_.has_bytes());
}

void Http1Connection::finish() {
    note_answer();
    caller_.on_answer(*std::exchange(request_, nullptr), answer_.status());
}

}  // namespace load
