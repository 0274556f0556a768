"""Descriptions of sounds out of their file names: compound words taken apart, the folder put in where it says something more.

Owns the words; knows no package. These captions are short and plain, as honest as the names are.
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

_COMPOUNDS = {
    "airlaser": "air laser",
    "airmine": "air mine",
    "airplasma": "air plasma",
    "alienatmo": "alien atmosphere",
    "alienbase": "alien base",
    "aliencom": "alien communication",
    "alienenergy": "alien energy",
    "alienflyby": "alien craft flying by",
    "alienmachinery": "alien machinery",
    "alienpowermachinery": "alien power machinery",
    "alienwormhole": "alien wormhole",
    "abnd": "abandoned",
    "arcticwind": "arctic wind",
    "atm": "atmosphere",
    "baseballbat": "baseball bat",
    "basealert": "base alert",
    "beerbubble": "beer bubbling",
    "beewater": "bee in water",
    "benchsaw": "bench saw",
    "biginn": "big inn",
    "birdylay": "bird laying an egg",
    "bloodspiderwalk": "spider walking",
    "bodyimpact": "hitting a body",
    "breakelectric": "breaking electric device",
    "breakglass": "breaking glass",
    "breakmetal": "breaking metal",
    "breakwood": "breaking wood",
    "bubles": "bubbles",
    "civfemdeath": "woman dying",
    "civfemhurt": "woman hurt",
    "civfemscream": "woman screaming",
    "civmaledeath": "man dying",
    "civmalehurt": "man hurt",
    "collectcrate": "collecting a crate",
    "drillgun": "drill gun",
    "femaledeath": "woman dying",
    "femalehurt": "woman hurt",
    "firepunch": "fire punch",
    "firesoft": "soft fire",
    "flamethrower": "flame thrower",
    "goldping": "gold ping",
    "goldspin": "gold spinning",
    "graveimpact": "gravestone impact",
    "grenadeimpact": "grenade impact",
    "heavybolter": "heavy bolter",
    "heavyneedler": "heavy needler",
    "hitground": "hitting the ground",
    "homerun": "home run",
    "humanflyby": "aircraft flying by",
    "ironping": "iron ping",
    "jetpackboost": "jet pack boost",
    "lasercannon": "laser cannon",
    "lasersight": "laser sight",
    "maledeath": "man dying",
    "malehurt": "man hurt",
    "medikit": "medical kit",
    "melonimpact": "melon impact",
    "mineimpact": "mine impact",
    "minepump": "mine pump",
    "minetick": "mine ticking",
    "newswav": "news",
    "pickhammer": "pick hammer",
    "planewater": "plane in water",
    "portalopen": "portal opening",
    "portalshot": "portal shot",
    "portalswitch": "portal switch",
    "radiomessage": "radio message",
    "rcplane": "radio controlled plane",
    "ropeattach": "rope attached",
    "roperelease": "rope released",
    "ropeshot": "rope shot",
    "rubberduck": "rubber duck",
    "shotgunfire": "shotgun fire",
    "shotgunmini": "small shotgun",
    "shotgunreload": "shotgun reload",
    "shutterclick": "camera shutter click",
    "smallfire": "small fire",
    "sniperreload": "sniper rifle reload",
    "stonegrind": "grinding stone",
    "taserdouble": "double taser",
    "throwrelease": "throwing",
    "ufolost": "ufo lost",
    "ufospotted": "ufo spotted",
    "ugv": "robot vehicle",
    "waterbullet": "water bullet",
    "waterfontain": "water fountain",
    "whipcrack": "whip crack",
    "winebubble": "wine bubbling",
}
# folder -> what goes before the words; a folder that is not named here says nothing
_CONTEXTS = {
    "ambience": "ambience of",
    "bloodspider": "alien spider:",
    "ortnok": "alien:",
    "shevaar": "alien:",
    "taman": "alien:",
    "hovernet": "alien:",
    "footsteps": "footsteps,",
    "geoscape": "signal:",
    "ui": "interface:",
    "ugv": "robot vehicle,",
    "weapons": "weapon:",
    "smiths": "smithy:",
    "taverns": "tavern:",
    "animals": "animal:",
    "farm": "farm:",
}


def readable(name: str) -> str:
    """A file name as words: `door2-open` -> `door open`."""
    words = re.sub(r"\d+x?|[_-]", " ", PurePosixPath(name).stem)
    return " ".join(words.split()).lower()


def describe(stem: str, folders: Sequence[str] = ()) -> str:
    """A caption from a file's stem and the folders it lies in: (`wood4`, [`footsteps`]) -> `footsteps, wood`."""
    words = readable(re.sub(r"\d+[ab]$", "", stem))
    words = " ".join(_COMPOUNDS.get(word, word) for word in words.split())
    context = _CONTEXTS.get(folders[-1], "") if folders else ""
    return f"{context} {words}".strip()
