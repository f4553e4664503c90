// A request from the moment it is due until it is answered or given up, and the list of all such requests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

namespace load {

class Connection;

struct Request {
    int64_t scheduled_ns = 0;
    int64_t sent_ns = 0;               // 0: not yet given to a connection
    Connection* connection = nullptr;  // null: waiting for one
    int32_t stream_id = 0;             // gRPC only
    size_t message = 0;
    uint64_t first_number = 0;  // of its unique ids; a request sent again keeps them
    bool is_measured = false;
    bool has_waited = false;  // no connection was free when it was due
    Request* earlier = nullptr;
    Request* later = nullptr;
};

// All outstanding requests in the order in which they were scheduled. The timeout is the same for all and counts from
// that time, so the oldest is always the first to time out: no timer heap is needed.
class OutstandingRequests {
public:
    Request& add(int64_t scheduled_ns) {
        Request& request = take_slot();
        request = Request{};
        request.scheduled_ns = scheduled_ns;
        request.earlier = newest_;
        (newest_ ? newest_->later : oldest_) = &request;
        newest_ = &request;
        ++size_;
        return request;
    }

    void remove(Request& request) {
        (request.earlier ? request.earlier->later : oldest_) = request.later;
        (request.later ? request.later->earlier : newest_) = request.earlier;
        free_.push_back(&request);
        --size_;
    }

    Request* oldest() const { return oldest_; }
    size_t size() const { return size_; }

private:
    Request& take_slot() {
        if (free_.empty()) return slots_.emplace_back();
        Request* slot = free_.back();
        free_.pop_back();
        return *slot;
    }

    std::deque<Request> slots_;
    std::vector<Request*> free_;
    Request* oldest_ = nullptr;
    Request* newest_ = nullptr;
    size_t size_ = 0;
};

}  // namespace load
