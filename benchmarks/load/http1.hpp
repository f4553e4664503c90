// HTTP/1.1 with keep-alive: one request in flight per connection. Made by the engine.
#pragma once

#include <string>

#include "connection.hpp"
#include "http1_answer.hpp"
#include "messages.hpp"

namespace load {

// What goes before a body of that length: request line and headers.
std::string http1_head(const Options& options, size_t body_bytes);

class Http1Connection final : public Connection {
public:
    Http1Connection(const Options& options, int epoll, Caller& caller, const Messages& messages,
                    const Numbering& numbering)
        : Connection(options.target, epoll, caller),
          messages_(messages),
          numbering_(numbering),
          expects_body_(options.method != "HEAD"),
          answer_(expects_body_) {}

    size_t num_free_streams() const override { return phase() == Phase::open && request_ == nullptr ? 1 : 0; }
    void submit(Request& request) override;
    void abandon(Request& request) override;

protected:
    bool awaits_greeting() const override { return false; }
    std::string_view pending_bytes() override { return unsent_; }
    void consume(size_t num_bytes) override { unsent_.remove_prefix(num_bytes); }
    void on_bytes(const char* data, size_t num_bytes) override;
    void on_end() override;

private:
    void finish();

    const Messages& messages_;
    const Numbering& numbering_;
    bool expects_body_;
    Request* request_ = nullptr;
    Http1Answer answer_;
    std::string scratch_;
    std::string_view unsent_;
};

}  // namespace load
