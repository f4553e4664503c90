// The socket half of a connection. Non-blocking and level-triggered: one read for each report of epoll.
#include "connection.hpp"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

namespace load {

Connection::~Connection() { close(); }

void Connection::connect() {
    const auto* address = reinterpret_cast<const sockaddr*>(&target_.address);
    socket_ = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (socket_ < 0) {
        connect_errno_ = errno;
        return close();
    }
    const int on = 1;
    setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    epoll_event event{EPOLLIN | EPOLLOUT, {this}};
    epoll_ctl(epoll_, EPOLL_CTL_ADD, socket_, &event);
    if (::connect(socket_, address, target_.address_bytes) != 0 && errno != EINPROGRESS) {
        connect_errno_ = errno;
        close();
    }
}

void Connection::handle(uint32_t events, char* buffer, size_t buffer_bytes) {
    if (phase_ == Phase::connecting) finish_connecting();
    if (phase_ == Phase::closed || (events & (EPOLLIN | EPOLLERR | EPOLLHUP | EPOLLRDHUP)) == 0) return;
    const ssize_t num_bytes = recv(socket_, buffer, buffer_bytes, 0);
    if (num_bytes > 0) return on_bytes(buffer, static_cast<size_t>(num_bytes));
    if (num_bytes == 0 || (errno != EAGAIN && errno != EINTR)) end();
}

void Connection::flush() {
    if (phase_ == Phase::closed || phase_ == Phase::connecting) return;
    for (std::string_view bytes = pending_bytes(); !bytes.empty(); bytes = pending_bytes()) {
        const ssize_t num_sent = send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
        if (num_sent < 0 && (errno == EAGAIN || errno == EINTR)) return watch(true);
        // An answer that came before the end may still be unread: the read that follows finds it, then the end.
        if (num_sent < 0) return watch(false);
        consume(static_cast<size_t>(num_sent));
    }
    watch(false);
}

void Connection::close() {
    if (phase_ == Phase::greeting) connect_errno_ = EPROTO;
    phase_ = Phase::closed;
    if (socket_ >= 0) ::close(socket_);
    socket_ = -1;
}

void Connection::finish_connecting() {
    socklen_t size = sizeof connect_errno_;
    getsockopt(socket_, SOL_SOCKET, SO_ERROR, &connect_errno_, &size);
    if (connect_errno_ != 0) return close();
    phase_ = awaits_greeting() ? Phase::greeting : Phase::open;
    watch(false);
}

void Connection::watch(bool for_writing) {
    if (for_writing == is_watching_writes_) return;
    is_watching_writes_ = for_writing;
    epoll_event event{EPOLLIN | (for_writing ? EPOLLOUT : 0U), {this}};
    epoll_ctl(epoll_, EPOLL_CTL_MOD, socket_, &event);
}

void Connection::end() {
    on_end();
    close();
}

}  // namespace load
