package config

import (
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
)

const (
	defaultAddress = "127.0.0.1"
	defaultPort    = "11434"
)

// Host is the address in OLLAMA_HOST: `[scheme://]host[:port][/path]`.
type Host struct {
	Scheme string // http or https
	Name   string // host name or address, without brackets; empty for all interfaces
	Port   string
	Path   string // without the leading slash
}

// DefaultHost is where the server listens if nothing else is asked for.
func DefaultHost() Host {
	return Host{Scheme: "http", Name: defaultAddress, Port: defaultPort}
}

// ParseHost reads every form that Ollama accepts. A scheme without a port means the scheme's own port.
func ParseHost(value string) (Host, error) {
	h := DefaultHost()
	if scheme, rest, ok := strings.Cut(value, "://"); ok {
		switch h.Scheme = strings.ToLower(scheme); h.Scheme {
		case "http":
			h.Port = "80"
		case "https":
			h.Port = "443"
		default:
			return Host{}, fmt.Errorf("scheme %q is not http or https", scheme)
		}
		value = rest
	}
	hostport, path, _ := strings.Cut(value, "/")
	h.Path = path

	name, port, err := net.SplitHostPort(hostport)
	switch {
	case err == nil:
		h.Name = name
		if port != "" {
			h.Port = port
		}
	case hostport == "":
	case net.ParseIP(strings.Trim(hostport, "[]")) != nil:
		h.Name = net.ParseIP(strings.Trim(hostport, "[]")).String()
	case strings.Contains(hostport, ":"):
		return Host{}, fmt.Errorf("%q is not a host and a port", hostport)
	default:
		h.Name = hostport
	}
	if n, err := strconv.Atoi(h.Port); err != nil || n < 0 || n > 65535 {
		return Host{}, fmt.Errorf("port %q is not a number from 0 to 65535", h.Port)
	}
	return h, nil
}

// ListenAddr is the address to listen on.
func (h Host) ListenAddr() string { return net.JoinHostPort(h.Name, h.Port) }

// URL is where a client finds the server. An address that means "all interfaces" becomes the
// loopback address, because one cannot connect to all interfaces.
func (h Host) URL() *url.URL {
	name := h.Name
	if name == "" {
		name = defaultAddress
	} else if ip := net.ParseIP(name); ip != nil && ip.IsUnspecified() {
		name = defaultAddress
		if ip.To4() == nil {
			name = net.IPv6loopback.String()
		}
	}
	u := &url.URL{Scheme: h.Scheme, Host: net.JoinHostPort(name, h.Port)}
	if h.Path != "" {
		u.Path = "/" + h.Path
	}
	return u
}

// IsLocal tells whether the address is this machine's loopback, so that a server for it can be started here.
func (h Host) IsLocal() bool {
	if h.Scheme != "http" || h.Path != "" {
		return false
	}
	ip := net.ParseIP(h.Name)
	return h.Name == "" || strings.EqualFold(h.Name, "localhost") || ip != nil && (ip.IsLoopback() || ip.IsUnspecified())
}
