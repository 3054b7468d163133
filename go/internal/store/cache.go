package store

import (
	"os"
	"sync"
	"time"
)

// modelCache keeps models by the path of their manifest, as long as the manifest is the same file. Requests ask for
// models far more often than models change.
type modelCache struct {
	sync.Mutex
	entries map[string]cachedModel
	warned  map[string]time.Time
}

type cachedModel struct {
	info  os.FileInfo
	model *Model
}

func (c *modelCache) get(path string, info os.FileInfo) *Model {
	c.Lock()
	defer c.Unlock()
	e, ok := c.entries[path]
	if !ok || !os.SameFile(e.info, info) || !e.info.ModTime().Equal(info.ModTime()) || e.info.Size() != info.Size() {
		return nil
	}
	return e.model
}

func (c *modelCache) put(path string, info os.FileInfo, m *Model) {
	c.Lock()
	defer c.Unlock()
	c.entries[path] = cachedModel{info, m}
}

func (c *modelCache) forget(path string) {
	c.Lock()
	defer c.Unlock()
	delete(c.entries, path)
}

// warnOnce logs what is wrong with a file once for each version of it: clients list models every few seconds.
func (s *Store) warnOnce(path, text string, err error) {
	var modified time.Time
	if info, statErr := os.Stat(path); statErr == nil {
		modified = info.ModTime()
	}
	s.cache.Lock()
	defer s.cache.Unlock()
	if at, ok := s.cache.warned[path]; ok && at.Equal(modified) {
		return
	}
	if s.cache.warned == nil {
		s.cache.warned = map[string]time.Time{}
	}
	s.cache.warned[path] = modified
	s.log.Warn("model store: "+text, "path", path, "error", err)
}
