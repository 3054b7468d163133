package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
)

const maxRedirects = 10

// newTransport returns a transport whose connections check, if not nil, has a say in.
func newTransport(check func(network, address string, _ syscall.RawConn) error) *http.Transport {
	dialer := &net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second, Control: check}
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         dialer.DialContext,
		TLSHandshakeTimeout: 15 * time.Second,
		IdleConnTimeout:     60 * time.Second,
		MaxIdleConnsPerHost: 16,
		// Nothing is unpacked: what a registry sends is bounded by what it is, not by what it could become.
		DisableCompression:     true,
		MaxResponseHeaderBytes: 256 << 10,
		// HTTP/1.1 gives each part of a blob a connection of its own.
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
}

// errPrivate refuses to let a public registry send us to machines that only we can reach.
var errPrivate = errdefs.New(errdefs.ErrForbidden, "the registry redirects to an address that is not public, which is refused (allow it with the option \"insecure\" if you trust the registry)")

// refusePrivate is asked with the address that is about to be connected to, after names were resolved.
func refusePrivate(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil || !publicAddr(ap.Addr()) {
		return errPrivate
	}
	return nil
}

// specialPrefixes are ranges, besides those that netip names, that no server of the internet is in.
var specialPrefixes = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("240.0.0.0/4"),
	// These wrap addresses of IPv4, private ones too.
	netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("64:ff9b:1::/48"), netip.MustParsePrefix("2002::/16"), netip.MustParsePrefix("::/96"),
}

func publicAddr(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if !a.IsGlobalUnicast() || a.IsPrivate() {
		return false
	}
	return !slices.ContainsFunc(specialPrefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// call is a request to a registry that can be repeated.
type call struct {
	method string
	url    *url.URL
	header http.Header
	// body gives the content anew for each attempt; nil for none. size is its length.
	body func() (io.Reader, error)
	size int64
	// keep307 hands temporary redirects to the caller, who knows what the registry means by them.
	keep307 bool
}

// do sends a call with the credentials that it needs and follows redirects. The caller closes the body of the response,
// which is of status 2xx (or 307, see call); all others are a *statusError.
func (r *repository) do(ctx context.Context, c call) (*http.Response, error) {
	for range maxRedirects {
		token := r.bearer()
		resp, err := r.send(ctx, c, token)
		if err != nil {
			return nil, err
		}
		switch code := resp.StatusCode; {
		case code >= 200 && code < 300, code == http.StatusTemporaryRedirect && c.keep307:
			if e := resp.Header.Get("Content-Encoding"); e != "" && e != "identity" {
				resp.Body.Close()
				return nil, errdefs.New(errdefs.ErrInvalid, "%s sent content encoded as %.20q, which was not asked for", c.url.Host, e)
			}
			if r.isHome(c.url) {
				r.granted(token)
			}
			return resp, nil
		case code == http.StatusUnauthorized && r.isHome(c.url) && !r.fixed:
			challenge := resp.Header.Values("WWW-Authenticate")
			failed := newStatusError(resp)
			if err := r.authorize(ctx, challenge, token, failed); err != nil {
				return nil, err
			}
		case isRedirect(code) && c.body == nil:
			resp.Body.Close()
			if c.url, err = r.redirected(c.url, resp.Header.Get("Location")); err != nil {
				return nil, err
			}
		default:
			failed := newStatusError(resp)
			if r.fixed {
				failed.peer = c.url.Host
			}
			return nil, failed
		}
	}
	return nil, errdefs.New(errdefs.ErrInvalid, "%s redirects too often", r.base.Host)
}

func isRedirect(code int) bool {
	switch code {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// redirected returns where a registry sends us, if we go there.
func (r *repository) redirected(from *url.URL, location string) (*url.URL, error) {
	to, err := from.Parse(location)
	if err != nil || location == "" || to.Host == "" {
		return nil, errdefs.New(errdefs.ErrInvalid, "%s redirects to nowhere", from.Host)
	}
	switch {
	case to.Scheme != "https" && to.Scheme != "http":
		return nil, errdefs.New(errdefs.ErrInvalid, "%s redirects to something that is not http", from.Host)
	case to.Scheme == "http" && !r.insecure:
		return nil, errdefs.New(errdefs.ErrForbidden, "%s redirects from https to http, which is refused", from.Host)
	}
	to.User = nil
	return to, nil
}

// isHome reports whether a URL is of the registry itself: the only place that credentials go to.
func (r *repository) isHome(u *url.URL) bool {
	return u.Scheme == r.base.Scheme && strings.EqualFold(hostPort(u), hostPort(r.base))
}

func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// send sends one request. The token goes to the registry itself only.
func (r *repository) send(ctx context.Context, c call, token string) (*http.Response, error) {
	var body io.Reader
	if c.body != nil {
		var err error
		if body, err = c.body(); err != nil {
			return nil, err
		}
	}
	home := r.isHome(c.url)
	if home {
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: r.noteAddress})
	}
	req, err := http.NewRequestWithContext(ctx, c.method, c.url.String(), body)
	if err != nil {
		return nil, errdefs.New(errdefs.ErrInvalid, "the registry's address is invalid")
	}
	if c.body != nil {
		req.ContentLength = c.size
	}
	for k, v := range c.header {
		req.Header[k] = v
	}
	req.Header.Set("User-Agent", r.client.params.UserAgent)
	// Also what is not asked for would not be unpacked, see newTransport.
	req.Header.Set("Accept-Encoding", "identity")
	if home && token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	transport, err := r.transport(req, home)
	if err != nil {
		return nil, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, r.failed(ctx, c.url.Host, err)
	}
	return resp, nil
}

// transport returns what carries a request. Hosts that the user did not name are reached only on public addresses,
// unless the registry itself is not on one or the user trusts it.
func (r *repository) transport(req *http.Request, home bool) (*http.Transport, error) {
	r.mu.Lock()
	anywhere := home || r.insecure || r.private
	r.mu.Unlock()
	if anywhere {
		return r.client.open, nil
	}
	proxy, err := http.ProxyFromEnvironment(req)
	if err != nil || proxy == nil {
		return r.client.public, nil
	}
	// The proxy connects, and it may well have a private address; only what the URL itself says can be checked.
	host := req.URL.Hostname()
	if a, err := netip.ParseAddr(host); err == nil && !publicAddr(a) || strings.EqualFold(host, "localhost") {
		return nil, errPrivate
	}
	return r.client.open, nil
}

// noteAddress learns where the registry is.
func (r *repository) noteAddress(info httptrace.GotConnInfo) {
	ap, err := netip.ParseAddrPort(info.Conn.RemoteAddr().String())
	if err != nil {
		return
	}
	if proxied, err := http.ProxyFromEnvironment(&http.Request{URL: r.base}); err != nil || proxied != nil {
		return // the address is the proxy's
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.private = !publicAddr(ap.Addr())
}

// failed says what went wrong with a connection. URLs are left out: those of redirects hold signatures.
func (r *repository) failed(ctx context.Context, host string, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if errors.Is(err, errPrivate) {
		return errPrivate
	}
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &certificate):
		return errdefs.New(errdefs.ErrForbidden, "the certificate of %s is not trusted: %w", host, certificate.Err)
	case errors.As(err, &record), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return errdefs.New(errdefs.ErrForbidden, "%s does not speak https; use the option \"insecure\" to reach it by http", host)
	}
	return fmt.Errorf("connection to %s failed: %w", host, err)
}
