// Takes a URL; leaves a resolved Target, loopback only unless the caller allows more.
#include <netdb.h>
#include <netinet/in.h>

#include <cstring>

#include "options.hpp"

namespace load {

namespace {

constexpr char kScheme[] = "http://";

bool is_loopback(const sockaddr* address) {
    if (address->sa_family == AF_INET) {
        return (ntohl(reinterpret_cast<const sockaddr_in*>(address)->sin_addr.s_addr) >> 24) == 127;
    }
    return IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr);
}

void split_authority(Target& target) {
    const std::string& authority = target.authority;
    const size_t bracket = authority.find(']');
    const size_t colon = authority.find(':', bracket == std::string::npos ? 0 : bracket);
    target.port = colon == std::string::npos ? "80" : authority.substr(colon + 1);
    target.host = authority.substr(0, colon);
    if (bracket != std::string::npos) target.host = authority.substr(1, bracket - 1);
}

[[noreturn]] void refuse_remote(const std::string& host) {
    throw UsageError("--url has host '" + host +
                     "'; allowed 127.0.0.0/8, [::1] or localhost; pass --allow-remote "
                     "only for a machine that is yours to load");
}

void resolve(Target& target, bool allows_remote) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    // A name that could leave the machine is not even looked up.
    if (target.host == "localhost") hints.ai_family = AF_INET;
    else if (!allows_remote) hints.ai_flags = AI_NUMERICHOST;
    addrinfo* found = nullptr;
    const int error = getaddrinfo(target.host.c_str(), target.port.c_str(), &hints, &found);
    if (error == EAI_NONAME && !allows_remote) refuse_remote(target.host);
    if (error != 0) throw UsageError("--url is " + target.url + ": " + gai_strerror(error));
    const bool is_allowed = allows_remote || is_loopback(found->ai_addr);
    std::memcpy(&target.address, found->ai_addr, found->ai_addrlen);
    target.address_bytes = found->ai_addrlen;
    freeaddrinfo(found);
    if (!is_allowed) refuse_remote(target.host);
}

}  // namespace

Target parse_target(const std::string& url, bool allows_remote) {
    const size_t scheme_chars = sizeof(kScheme) - 1;
    if (url.compare(0, scheme_chars, kScheme) != 0) {
        throw UsageError("--url is '" + url + "'; allowed http://host:port/path");
    }
    Target target;
    target.url = url;
    const size_t slash = url.find('/', scheme_chars);
    target.authority = url.substr(scheme_chars, slash == std::string::npos ? slash : slash - scheme_chars);
    target.path = slash == std::string::npos ? "/" : url.substr(slash);
    split_authority(target);
    resolve(target, allows_remote);
    return target;
}

}  // namespace load
