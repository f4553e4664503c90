// One event loop: schedules requests, gives them to connections, records what became of them. Made by main, one for
// each thread; nothing is shared between engines but the read-only messages.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "arrivals.hpp"
#include "connection.hpp"
#include "messages.hpp"
#include "options.hpp"
#include "request.hpp"
#include "tally.hpp"

namespace load {

class Engine final : private Caller {
public:
    Engine(const Options& options, const Messages& messages, int64_t thread);
    ~Engine();

    // Opens the connections; returns 0, or the errno of the last attempt if not one succeeded.
    int connect();
    // Warms up, measures, waits for what is outstanding. `start_ns` is the first scheduled time.
    void run(int64_t start_ns);

    const Tally& tally() const { return tally_; }

private:
    void on_answer(Request& request, int status) override;
    void on_unprocessed(Request& request) override;
    void on_cut_off(Request& request, bool has_answer_bytes) override;
    void on_protocol_error(Request& request) override;

    void run_until(int64_t end_ns);
    void turn(int64_t latest_wake_ns);
    void schedule_arrivals(int64_t now);
    Request& schedule(int64_t scheduled_ns);
    void dispatch(int64_t now);
    Request* next_to_send(int64_t now);
    void hand_over(Request& request, Connection& connection);
    void expire(int64_t now);
    void fail(Request& request, Failure failure);
    void send_again(Request& request);
    void finish(Request& request, const Sample& sample);
    TimelineStep& timeline_step(int64_t finished_ns);

    bool any_is(Connection::Phase phase) const;
    void open_connection();
    void reopen_lost(int64_t now);
    void note_refused_connect();
    void settle(Connection& connection);
    void list(Connection& connection);
    void unlist(Connection& connection);
    void mark_to_flush(Connection& connection);
    void flush_marked();
    void wait(int64_t wake_ns);
    bool is_in_window(int64_t time_ns) const { return time_ns >= measure_start_ns_ && time_ns < measure_end_ns_; }

    const Options& options_;
    const Messages& messages_;
    const size_t num_connections_;
    const size_t max_outstanding_;
    const int64_t timeout_ns_;
    const Numbering numbering_;
    Arrivals arrivals_;
    size_t next_message_;
    uint64_t next_number_ = 0;

    int epoll_;
    std::vector<char> buffer_;
    std::vector<std::unique_ptr<Connection>> connections_;
    std::vector<std::unique_ptr<Connection>>
        closed_;                    // kept for one turn: its events and flush list may still name them
    std::deque<Connection*> free_;  // those that can take a request, taken in turn
    std::vector<Connection*> to_flush_;
    size_t num_to_reopen_ = 0;
    int64_t reopen_at_ns_ = 0;

    OutstandingRequests outstanding_;
    std::deque<Request*> waiting_;

    int64_t start_ns_ = 0;
    int64_t measure_start_ns_ = INT64_MAX;
    int64_t measure_end_ns_ = INT64_MAX;
    int last_connect_errno_ = 0;
    Tally tally_;
};

}  // namespace load
