package registry

import (
	"context"
	"crypto/md5"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// commitPatience is how many times longer than usual a registry may be silent after it got everything.
const commitPatience = 10

// upload is the sending of one blob. The protocol wants its chunks in order.
type upload struct {
	repository *repository
	layer      store.Layer
	content    *os.File
	report     func(completed int64)

	// location is where the next chunk goes, offset where it begins.
	location *url.URL
	offset   int64
	// sums are the MD5s of the chunks that went to where the registry redirected them: the storage there asks for them.
	sums [][]byte
}

func (u *upload) run(ctx context.Context) error {
	mounted, err := u.begin(ctx, true)
	if mounted || err != nil {
		return err
	}
	size := u.repository.client.partSize(u.layer.Size)
	err = u.repository.client.retry(ctx, u.repository.client.params.Retries, func() (bool, error) {
		before := u.offset
		err := u.send(ctx, size)
		if err != nil && transient(err) {
			err = u.resume(ctx, err)
		}
		return u.offset > before, err
	})
	if err != nil {
		return err
	}
	return u.commit(ctx)
}

// begin opens an upload. mounted tells that the registry took the blob from another of its repositories instead, which
// it is asked for with mount.
func (u *upload) begin(ctx context.Context, mount bool) (mounted bool, err error) {
	r := u.repository
	to := r.url("blobs", "uploads")
	to.Path += "/"
	if from, ok := u.mountable(); mount && ok {
		to.RawQuery = url.Values{"mount": {u.layer.Digest}, "from": {from}}.Encode()
	}
	resp, err := r.quick(ctx, call{
		method: http.MethodPost, url: to, body: func() (io.Reader, error) { return http.NoBody, nil },
	})
	if err != nil {
		return false, err
	}
	if resp.StatusCode == http.StatusCreated {
		return true, nil
	}
	u.offset, u.sums = 0, nil
	return false, u.next(to, resp)
}

// mountable returns the repository of this registry that the layer was taken over from, if it was.
func (u *upload) mountable() (string, bool) {
	// Ollama keeps the path of a file here when there is no such model.
	if u.layer.From == "" || strings.HasPrefix(u.layer.From, "/") {
		return "", false
	}
	n, err := modelname.Parse(u.layer.From)
	if err != nil || !strings.EqualFold(n.Host, u.repository.base.Host) {
		return "", false
	}
	from := repositoryPath(n)
	return from, from != u.repository.path
}

// next notes where the registry wants the next chunk.
func (u *upload) next(from *url.URL, resp *http.Response) error {
	location := resp.Header.Get("Docker-Upload-Location")
	if location == "" {
		location = resp.Header.Get("Location")
	}
	to, err := u.repository.redirected(from, location)
	if err != nil {
		return err
	}
	u.location = to
	return nil
}

// send sends what is left, chunk by chunk.
func (u *upload) send(ctx context.Context, size int64) error {
	for u.offset < u.layer.Size {
		n := min(size, u.layer.Size-u.offset)
		if err := u.chunk(ctx, n); err != nil {
			return err
		}
		u.offset += n
		u.report(u.offset)
	}
	return nil
}

// chunk sends one chunk, to the registry or to where it redirects.
func (u *upload) chunk(ctx context.Context, n int64) error {
	release, err := u.repository.client.slot(ctx)
	if err != nil {
		return err
	}
	defer release()
	sum := md5.New()
	header := http.Header{
		"Content-Type":       {"application/octet-stream"},
		"Content-Range":      {fmt.Sprintf("%d-%d", u.offset, u.offset+n-1)},
		"X-Redirect-Uploads": {"1"},
	}
	resp, err := u.sendBody(ctx, call{method: http.MethodPatch, url: u.location, header: header, keep307: true}, n, io.Discard)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusTemporaryRedirect {
		return u.next(u.location, resp)
	}
	// Location is where this chunk goes, Docker-Upload-Location where the next one is asked about.
	target, err := u.repository.redirected(u.location, resp.Header.Get("Location"))
	if err != nil {
		return err
	}
	header = http.Header{"Content-Type": {"application/octet-stream"}}
	if _, err := u.sendBody(ctx, call{method: http.MethodPut, url: target, header: header}, n, sum); err != nil {
		return err
	}
	u.sums = append(u.sums, sum.Sum(nil))
	if resp.Header.Get("Docker-Upload-Location") == "" {
		return nil
	}
	return u.next(u.location, resp)
}

// sendBody sends n bytes from the offset and copies them to seen.
func (u *upload) sendBody(ctx context.Context, c call, n int64, seen io.Writer) (*http.Response, error) {
	patience := u.repository.client.params.StallTimeout
	ctx, touch, stop := watch(ctx, patience)
	defer stop()
	c.size = n
	c.body = func() (io.Reader, error) {
		return &sending{
			r: io.TeeReader(io.NewSectionReader(u.content, u.offset, n), seen), touch: touch, report: u.report, at: u.offset,
		}, nil
	}
	resp, err := u.repository.do(ctx, c)
	if err != nil {
		return nil, err
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxErrorBody))
	return resp, resp.Body.Close()
}

// sending is a body that tells how much of it is gone.
type sending struct {
	r      io.Reader
	touch  func()
	report func(int64)
	at     int64
	told   time.Time
}

func (s *sending) Read(b []byte) (int, error) {
	n, err := s.r.Read(b)
	s.touch()
	s.at += int64(n)
	if n > 0 && time.Since(s.told) >= reportInterval {
		s.told = time.Now()
		s.report(s.at)
	}
	return n, err
}

// resume finds out after a failure how much the registry has, or begins anew. It returns the failure, so that the retry
// counts it, unless it cannot go on at all.
func (u *upload) resume(ctx context.Context, failure error) error {
	if len(u.sums) > 0 {
		return failure // whole chunks went elsewhere, and the one that failed is repeated
	}
	wctx, _, stop := watch(ctx, u.repository.client.params.StallTimeout)
	defer stop()
	resp, err := u.repository.do(wctx, call{method: http.MethodGet, url: u.location})
	switch {
	case hasStatus(err, http.StatusNotFound, http.StatusMethodNotAllowed):
		if _, err := u.begin(ctx, false); err != nil {
			return err
		}
		return failure
	case err != nil:
		return failure // the next attempt will tell
	}
	resp.Body.Close()
	_, last, ok := strings.Cut(resp.Header.Get("Range"), "-")
	end, err := strconv.ParseInt(last, 10, 64)
	switch {
	case !ok || err != nil || end < 0:
		u.offset = 0
	case end >= u.layer.Size:
		return errdefs.New(errdefs.ErrUnavailable, "the registry has more of the upload than was sent")
	case end == 0:
		// Registries say 0-0 both for nothing and for one byte.
		u.offset = 0
	default:
		u.offset = end + 1
	}
	if resp.Header.Get("Location") != "" {
		if err := u.next(u.location, resp); err != nil {
			return err
		}
	}
	return failure
}

// commit ends the upload; the registry checks the digest.
func (u *upload) commit(ctx context.Context) error {
	to := *u.location
	query := to.Query()
	query.Set("digest", u.layer.Digest)
	if len(u.sums) > 0 {
		all := md5.New()
		for _, s := range u.sums {
			all.Write(s)
		}
		query.Set("etag", fmt.Sprintf("%x-%d", all.Sum(nil), len(u.sums)))
	}
	to.RawQuery = query.Encode()
	_, err := u.repository.quick(ctx, call{
		method: http.MethodPut, url: &to, body: func() (io.Reader, error) { return http.NoBody, nil },
	})
	return err
}
