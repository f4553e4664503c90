// One TCP connection over its whole life: connect, write, read, end. Takes requests from the engine; tells it what
// became of each. The protocols are Http1Connection and GrpcConnection.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "options.hpp"
#include "request.hpp"

namespace load {

enum class Failure { connect, reset, timeout, protocol };
constexpr size_t kNumFailures = 4;

// What a connection reports. Each request it was given ends in exactly one of these, or in `Connection::abandon`.
class Caller {
public:
    virtual void on_answer(Request& request, int status) = 0;
    // The server declared that it has not processed the request, so it is safe to send it again.
    virtual void on_unprocessed(Request& request) = 0;
    // The connection ended under the request.
    virtual void on_cut_off(Request& request, bool has_answer_bytes) = 0;
    virtual void on_protocol_error(Request& request) = 0;

protected:
    ~Caller() = default;
};

class Connection {
public:
    // greeting: connected, but the server has yet to say that it is ready; retiring: finishes what it has, takes no
    // more.
    enum class Phase { connecting, greeting, open, retiring, closed };

    Connection(const Target& target, int epoll, Caller& caller) : caller_(caller), target_(target), epoll_(epoll) {}
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;
    virtual ~Connection();

    // Starts to connect; the phase is then connecting, or closed with connect_errno() set. It is set as well where the
    // connection ended before it was ever open.
    void connect();
    // Handles what epoll reported, reading at most once into `buffer`.
    void handle(uint32_t events, char* buffer, size_t buffer_bytes);
    // Writes what is pending, as far as the socket takes it.
    void flush();

    // How many more requests it takes now.
    virtual size_t num_free_streams() const = 0;
    // Takes over a request; its bytes leave at the next flush() at the latest.
    virtual void submit(Request& request) = 0;
    // Forgets a request that timed out; its answer, if it still comes, is dropped.
    virtual void abandon(Request& request) = 0;

    Phase phase() const { return phase_; }
    bool has_answered() const { return has_answered_; }
    int connect_errno() const { return connect_errno_; }

    // The engine's own marks.
    bool is_listed = false;    // among those that can take a request
    bool is_to_flush = false;  // among those to flush
    bool is_replaced = false;  // another connection has been opened in its place

protected:
    virtual std::string_view pending_bytes() = 0;
    virtual void consume(size_t num_bytes) = 0;
    virtual void on_bytes(const char* data, size_t num_bytes) = 0;
    // The peer closed or reset: what is in flight must be reported. The socket is closed afterwards.
    virtual void on_end() = 0;

    // True if the server speaks first, and become_open() follows when it has.
    virtual bool awaits_greeting() const = 0;
    void become_open() { phase_ = Phase::open; }
    void retire() { phase_ = Phase::retiring; }
    void close();
    void note_answer() { has_answered_ = true; }

    Caller& caller_;
    const Target& target_;

private:
    void finish_connecting();
    void watch(bool for_writing);
    void end();

    int epoll_;
    int socket_ = -1;
    Phase phase_ = Phase::connecting;
    bool is_watching_writes_ = true;
    bool has_answered_ = false;
    int connect_errno_ = 0;
};

}  // namespace load
