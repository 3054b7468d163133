package hub

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/ollama/ollama/api"
	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/errdefs"
	"github.com/ollmlx/ollmlx/go/internal/mlxmodel"
	"github.com/ollmlx/ollmlx/go/internal/modelname"
	"github.com/ollmlx/ollmlx/go/internal/registry"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
	"github.com/ollmlx/ollmlx/go/internal/store"
)

// What progress says; the words are Ollama's.
const (
	statusManifest = "pulling manifest"
	statusWriting  = "writing manifest"
	statusSuccess  = "success"
)

// Pull implements registry.Puller for names of the hub.
func (c *Client) Pull(ctx context.Context, n model.Name, o registry.Options, progress func(api.ProgressResponse)) error {
	if o.Insecure {
		return errdefs.New(errdefs.ErrInvalid, "insecure is for registries; %s is on the hub, whose address is HF_ENDPOINT", modelname.Display(n))
	}
	progress(api.ProgressResponse{Status: statusManifest})
	quantize, err := c.quantization(n, o.Quantize)
	if err != nil {
		return err
	}
	repo, quant, err := c.inspect(ctx, n)
	if err != nil {
		return err
	}
	if repo.FromCache {
		progress(api.ProgressResponse{Status: repo.FromCacheReason + "; taking what its cache on this machine has"})
	}
	if c.converted(n, repo, quantize) {
		progress(api.ProgressResponse{Status: statusSuccess})
		return nil
	}
	p, err := c.newPull(n, repo, progress)
	if err != nil {
		return err
	}
	p.ggufTag, p.quantize = quant, quantize
	return p.run(ctx)
}

// quantization returns what the weights are to be quantized to: what is asked for, or what they were when the model was
// pulled before. Empty: they stay as they are.
func (c *Client) quantization(n model.Name, asked string) (string, error) {
	if asked != "" {
		return asked, store.CheckQuantization(asked)
	}
	m, err := c.params.Store.Get(n)
	if err != nil || m.Source == nil {
		return "", nil // whatever is wrong with the stored model, the pull replaces it
	}
	return m.Source.Quantize, nil
}

// converted reports whether a model is what quantizing the repository would make of it: the original is not here any more
// and would have to come again.
func (c *Client) converted(n model.Name, repo *runnerpb.Repository, quantize string) bool {
	m, err := c.params.Store.Get(n)
	return quantize != "" && err == nil && m.Source != nil && m.Source.Quantize == quantize && m.Source.Commit == repo.Commit
}

// inspect asks what the repository of a name holds. The tag is a revision or, if there is none such, a quantization of
// GGUF files, which is returned then.
func (c *Client) inspect(ctx context.Context, n model.Name) (repo *runnerpb.Repository, quant string, err error) {
	q := &runnerpb.InspectRequest{Repository: n.Namespace + "/" + n.Model}
	if n.Tag == modelname.DefaultTag {
		repo, err = ask(ctx, c, runnerpb.HubClient.Inspect, q)
		return repo, "", err
	}
	q.Revision = n.Tag
	repo, err = ask(ctx, c, runnerpb.HubClient.Inspect, q)
	if err == nil || !errors.Is(err, errdefs.ErrNotFound) && !errors.Is(err, errdefs.ErrUnavailable) {
		return repo, "", err
	}
	main, mainErr := ask(ctx, c, runnerpb.HubClient.Inspect, &runnerpb.InspectRequest{Repository: q.Repository})
	if mainErr != nil {
		return nil, "", err
	}
	if slices.ContainsFunc(main.Files, func(f *runnerpb.HubFile) bool { return strings.HasSuffix(strings.ToLower(f.Path), ".gguf") }) {
		return main, n.Tag, nil
	}
	return nil, "", err
}

// pull is one pull under way.
type pull struct {
	client   *Client
	name     model.Name
	repo     *runnerpb.Repository
	site     *registry.Site
	progress func(api.ProgressResponse)
	// ggufTag is the quantization of the GGUF files that are wanted; empty: any, if there is nothing but GGUF.
	ggufTag string
	// quantize is what the weights are converted to; empty: nothing.
	quantize string
	// files are those of the repository by path.
	files map[string]*runnerpb.HubFile
	// digests are those of files whose content is known by SHA-256, which is all of them when the transfer begins.
	digests map[string]string
	// byDigest finds files again.
	byDigest map[string]*runnerpb.HubFile
	// release lets go of the blobs of small files.
	release []func()
}

func (c *Client) newPull(n model.Name, repo *runnerpb.Repository, progress func(api.ProgressResponse)) (*pull, error) {
	p := &pull{
		client: c, name: spelled(n, repo.Repository), repo: repo, progress: progress,
		files: map[string]*runnerpb.HubFile{}, digests: map[string]string{}, byDigest: map[string]*runnerpb.HubFile{},
	}
	for _, f := range repo.Files {
		p.files[f.Path] = f
	}
	if repo.FromCache {
		return p, nil
	}
	base, err := url.Parse(repo.Endpoint)
	if err != nil || base.Host == "" || base.Scheme != "https" && base.Scheme != "http" {
		return nil, errdefs.New(errdefs.ErrInvalid, "HF_ENDPOINT=%q is no address such as https://huggingface.co", repo.Endpoint)
	}
	p.site = c.params.Transfers.Site(base, repo.Token)
	return p, nil
}

// spelled gives a name the hub's own spelling.
func spelled(n model.Name, repository string) model.Name {
	namespace, name, _ := strings.Cut(repository, "/")
	if strings.EqualFold(namespace, n.Namespace) && strings.EqualFold(name, n.Model) {
		n.Namespace, n.Model = namespace, name
	}
	return n
}

func (p *pull) run(ctx context.Context) error {
	defer func() {
		for _, release := range p.release {
			release()
		}
	}()
	selected, err := p.choose(ctx)
	if err != nil {
		return p.explain(err)
	}
	if err := p.fetchSmall(ctx, selected.All()); err != nil {
		return p.explain(err)
	}
	in, err := p.receive(selected.All())
	if err != nil {
		return err
	}
	defer in.Close()
	if err := p.adopt(ctx, in); err != nil {
		return err
	}
	if err := p.fetch(ctx, in); err != nil {
		return p.explain(err)
	}
	if err := p.create(ctx, selected); err != nil {
		return err
	}
	in.Done()
	p.progress(api.ProgressResponse{Status: statusSuccess})
	return nil
}

// choose decides which files make up the model, from names and small files: what cannot work is told before any weights
// are transferred.
func (p *pull) choose(ctx context.Context) (mlxmodel.Selection, error) {
	paths := p.paths()
	if p.ggufTag != "" || !mlxmodel.IsModel(paths) && len(ggufs(paths)) > 0 {
		return p.chooseGGUF(paths)
	}
	if err := p.fetchSmall(ctx, mlxmodel.Select(intersect(mlxmodel.Needed, paths)).Files); err != nil {
		return mlxmodel.Selection{}, err
	}
	look, err := mlxmodel.Look(&source{p, paths})
	if err != nil {
		return mlxmodel.Selection{}, errdefs.New(errdefs.Kind(err), "%s: %w", p.repo.Repository, err)
	}
	known, err := ask(ctx, p.client, runnerpb.HubClient.Supports, &runnerpb.SupportsRequest{
		ModelType: look.ModelType, Architectures: look.Architectures,
	})
	switch {
	case err != nil:
		return mlxmodel.Selection{}, err
	case !known.Supported && look.OwnCode:
		return mlxmodel.Selection{}, errdefs.New(errdefs.ErrUnsupported, "%s needs code of its own (trust_remote_code), which is never executed, "+
			"because %s does not know the architecture %q", p.repo.Repository, known.Engine, look.ModelType)
	case !known.Supported:
		return mlxmodel.Selection{}, errdefs.New(errdefs.ErrUnsupported, "%s has the architecture %q, which %s does not know; nothing was downloaded",
			p.repo.Repository, look.ModelType, known.Engine)
	}
	return look.Selection, nil
}

func (p *pull) chooseGGUF(paths []string) (mlxmodel.Selection, error) {
	if p.quantize != "" {
		return mlxmodel.Selection{}, errdefs.New(errdefs.ErrInvalid, "%s has GGUF files, which are not quantized again; "+
			"choose one of its quantizations with %s:QUANTIZATION", p.repo.Repository, p.repo.Repository)
	}
	files, err := chooseGGUF(p.repo.Repository, p.ggufTag, paths)
	return mlxmodel.Selection{Files: files}, err
}

// receive prepares the store for the files.
func (p *pull) receive(paths []string) (*store.Incoming, error) {
	var files []store.NewFile
	for _, path := range paths {
		files = append(files, store.NewFile{Path: path, Digest: p.digests[path], Size: int64(p.files[path].Size)})
		p.byDigest[p.digests[path]] = p.files[path]
	}
	return p.client.params.Store.ReceiveFiles(p.name, files)
}

// adopt takes over files that the library's cache has.
func (p *pull) adopt(ctx context.Context, in *store.Incoming) error {
	for _, l := range in.Layers() {
		f := p.byDigest[l.Digest]
		if has, err := in.Has(l); has || err != nil || f.CachePath == "" {
			if err != nil {
				return err
			}
			continue
		}
		p.progress(api.ProgressResponse{Status: "checking " + l.Name + " in the cache of Hugging Face"})
		if _, err := p.client.params.Store.Adopt(ctx, l.Digest, l.Size, f.CachePath); err != nil {
			return err
		}
	}
	return nil
}

// fetch transfers what is missing.
func (p *pull) fetch(ctx context.Context, in *store.Incoming) error {
	if p.site == nil {
		return p.incomplete(in)
	}
	addresses := map[string]*url.URL{}
	for _, l := range in.Layers() {
		address, err := p.address(p.byDigest[l.Digest])
		if err != nil {
			return err
		}
		addresses[l.Digest] = address
	}
	return p.site.Fetch(ctx, in, modelname.Display(p.name), func(digest string) *url.URL { return addresses[digest] }, p.progress)
}

// incomplete tells what the cache lacks when there is nothing else.
func (p *pull) incomplete(in *store.Incoming) error {
	for _, l := range in.Layers() {
		has, err := in.Has(l)
		if err != nil {
			return err
		}
		if !has {
			return errdefs.New(errdefs.ErrUnavailable, "%s, and %s in its cache on this machine is damaged", p.repo.FromCacheReason, l.Name)
		}
	}
	return nil
}

// create makes the model of its files.
func (p *pull) create(ctx context.Context, selected mlxmodel.Selection) error {
	req := api.CreateRequest{Model: p.name.String(), Files: map[string]string{}}
	for _, path := range selected.All() {
		req.Files[path] = p.digests[path]
	}
	if len(selected.Licenses) == 0 {
		req.License = license(p.repo)
	}
	req.Quantize = p.quantize
	params := store.CreateParams{Request: req, Source: p.source(), Converter: p.client.params.Converter}
	return p.client.params.Store.Create(ctx, params, func(r api.ProgressResponse) {
		// The rest is about files, of which all has been told.
		if r.Status == statusWriting || r.Digest != "" && p.quantize != "" {
			p.progress(r)
		}
	})
}

func (p *pull) source() *store.Source {
	page := strings.TrimSuffix(p.repo.Endpoint, "/") + "/" + p.repo.Repository + "/tree/" + p.repo.Commit
	return &store.Source{Repository: p.repo.Repository, URL: page, Commit: p.repo.Commit, Quantize: p.quantize}
}

// license is what the model's card says, for a model without a license file.
func license(r *runnerpb.Repository) any {
	if r.License == "" {
		return nil
	}
	text := "License: " + r.License
	if r.LicenseLink != "" {
		text += "\n" + r.LicenseLink
	}
	return text
}

// explain puts the refusals of the hub during a transfer into words that help.
func (p *pull) explain(err error) error {
	page := p.repo.Endpoint + "/" + p.repo.Repository
	switch registry.Status(err) {
	case http.StatusUnauthorized, http.StatusForbidden:
		if p.repo.Token == "" {
			return errdefs.New(errdefs.ErrForbidden, "%s needs a login: visit %s, accept its conditions if it has any, then run \"ollmlx login\"", p.repo.Repository, page)
		}
		return errdefs.New(errdefs.ErrForbidden, "this account has no access to %s: visit %s and ask for it there", p.repo.Repository, page)
	case http.StatusNotFound, http.StatusGone, http.StatusRequestedRangeNotSatisfiable:
		return errdefs.New(errdefs.ErrUnavailable, "%s changed on the hub during the pull; pull it again: %w", p.repo.Repository, err)
	}
	if errors.Is(err, errdefs.ErrInvalid) && strings.Contains(err.Error(), "digest mismatch") {
		return errdefs.New(errdefs.ErrInvalid, "%s: %w", p.repo.Repository, err)
	}
	return err
}
